package identity_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

// Nothing that holds a secret shows it when it is printed or logged, alone or
// within something else.
func TestSecretsAreNotShown(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	creds := credentials(t, ca, agent(hostID))
	gossip := bytes.Repeat([]byte{0xA7}, 32)
	creds.GossipKeys = [][]byte{gossip}
	further := identity.Segment{Name: "dmz", GossipKeys: creds.GossipKeys}
	creds.Also = []identity.Segment{further}
	text, _ := mustToken(t, ca)
	tok, err := identity.ParseToken(text)
	must(t, err)
	secret := text[strings.LastIndex(text, ".")+1:]
	caKey, err := identity.LoadCA(ca.CertPEM(), ca.KeyPEM())
	must(t, err)
	request := identity.JoinRequest{Name: "web-1", HostID: hostID, Secret: secret}

	var secrets []string
	for _, raw := range [][]byte{creds.Key, creds.Key.Seed(), gossip, der(ca.KeyPEM())[16:]} {
		secrets = append(secrets, string(raw), hex.EncodeToString(raw), strings.ToUpper(hex.EncodeToString(raw)),
			base64.StdEncoding.EncodeToString(raw)[:40], strings.Trim(fmt.Sprintf("%d", raw), "[]"),
			strings.TrimSuffix(fmt.Sprintf("%#v", raw)[len("[]byte{"):], "}"))
	}
	secrets = append(secrets, secret, hex.EncodeToString([]byte(secret)))

	values := map[string]any{
		"Credentials": creds, "*Credentials": &creds, "Token": tok, "*Token": &tok, "CA": ca, "loaded CA": caKey,
		"JoinRequest": request, "*JoinRequest": &request, "Verifier": creds.Verifier(),
		"Enrolment": identity.Enrolment{Identity: creds.Identity, GossipKeys: creds.GossipKeys},
		"Segment":   further, "*Segment": &further, "in a slice of segments": creds.Also,
		"in a struct": struct {
			C identity.Credentials
			T identity.Token
		}{creds, tok},
		"in a slice": []any{creds, tok, request, ca},
		"in a map":   map[string]identity.Credentials{"c": creds},
		"in an error": fmt.Errorf("join as %v with %v: %w", request, tok,
			fmt.Errorf("%+v", creds)),
	}
	check := func(name, how, shown string) {
		for _, s := range secrets {
			if strings.Contains(shown, s) {
				t.Errorf("%s by %s shows a secret: %s", name, how, shown)
				return
			}
		}
	}
	for name, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
			check(name, verb, fmt.Sprintf(verb, v))
		}
		for format, handler := range map[string]func(*bytes.Buffer) slog.Handler{
			"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
			"JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
		} {
			if format == "JSON" && strings.HasPrefix(name, "in a slice") {
				continue // what is inside a slice is marshalled, as it is to be sent or kept
			}
			var b bytes.Buffer
			slog.New(handler(&b)).Info("x", "v", v)
			check(name, "slog "+format, b.String())
		}
	}
	for _, v := range []any{creds, &creds, tok, ca, creds.Verifier()} {
		text, err := json.Marshal(v)
		must(t, err)
		check(fmt.Sprintf("%T", v), "JSON", string(text))
	}
	if got := creds.String(); got != "agent web-1 ("+hostID+")" {
		t.Errorf("credentials print as %q", got)
	}
	if got := fmt.Sprint(tok); !strings.HasSuffix(got, ".(secret)") {
		t.Errorf("the token prints as %q", got)
	}
}
