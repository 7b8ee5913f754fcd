package identity_test

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"moult/mesh/identity"
)

func mustToken(t testing.TB, ca *identity.CA) (text, secretHash string) {
	t.Helper()
	hash, err := identity.CAHash(ca.CertPEM())
	must(t, err)
	text, secretHash, err = identity.NewToken(hash)
	must(t, err)
	return text, secretHash
}

func TestTokenRoundTrip(t *testing.T) {
	ca := mustCA(t, clusterID, time.Now())
	text, secretHash := mustToken(t, ca)
	caHash, err := identity.CAHash(ca.CertPEM())
	must(t, err)
	for _, typed := range []string{text, " " + text + "\r\n", strings.Replace(text, caHash, strings.ToUpper(caHash), 1)} {
		tok, err := identity.ParseToken(typed)
		must(t, err)
		if tok.CAHash != caHash || tok.SecretHash != secretHash {
			t.Errorf("%q parses as %+v", typed, tok)
		}
	}
	secret := text[strings.LastIndex(text, ".")+1:]
	if sum := sha256.Sum256([]byte(secret)); hex.EncodeToString(sum[:]) != secretHash {
		t.Error("what the cluster keeps is not the secret's hash")
	}
	if again, _ := mustToken(t, ca); again == text {
		t.Error("two tokens are alike")
	}
	if _, _, err := identity.NewToken("abc"); err == nil {
		t.Error("a token without a CA hash was made")
	}
}

// Each message says what to do, and none quotes the token.
func TestMistypedTokens(t *testing.T) {
	text, _ := mustToken(t, mustCA(t, clusterID, time.Now()))
	parts := strings.Split(text, ".")
	secret := parts[2]
	for name, tc := range map[string]struct{ typed, says string }{
		"nothing":              {" \n", "is empty"},
		"another format":       {"MOULT2." + parts[1] + "." + secret, "does not begin with MOULT1."},
		"the whole command":    {"moult agent --token " + text, "does not begin with MOULT1."},
		"quoted":               {`"` + text + `"`, "does not begin with MOULT1."},
		"secret missing":       {parts[0] + "." + parts[1], "2 parts"},
		"two tokens":           {text + text, "parts"},
		"hash cut":             {parts[0] + "." + parts[1][1:] + "." + secret, "CA hash is damaged"},
		"hash with a letter O": {parts[0] + "." + strings.Repeat("O", 64) + "." + secret, "CA hash is damaged"},
		"last letter missing":  {text[:len(text)-1], "secret is damaged"},
		"a letter too many":    {text + "A", "secret is damaged"},
		"wrapped by terminal":  {text[:len(text)-8] + "\n" + text[len(text)-8:], "secret is damaged"},
		"wrapped, CRLF":        {text[:len(text)-8] + "\r\n" + text[len(text)-8:], "secret is damaged"},
		"space inside":         {text[:len(text)-8] + " " + text[len(text)-8:], "secret is damaged"},
	} {
		_, err := identity.ParseToken(tc.typed)
		if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "moult token create") {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), secret[:20]) {
			t.Errorf("%s: the message shows the secret: %v", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	text, _ := mustToken(f, mustCA(f, clusterID, time.Now()))
	f.Add(text)
	f.Add("MOULT1..")
	f.Add("MOULT1." + strings.Repeat("a", 64) + "." + strings.Repeat("A", 32))
	f.Add(text[:len(text)-1] + "\n")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := identity.ParseToken(s)
		if err != nil {
			if len(s) > 60 && strings.Contains(err.Error(), s) {
				t.Fatalf("the message quotes the token: %v", err)
			}
			return
		}
		// What parses has one spelling, but for the case of the hash.
		trimmed := strings.TrimSpace(s)
		secret := trimmed[strings.LastIndex(trimmed, ".")+1:]
		if sum := sha256.Sum256([]byte(secret)); hex.EncodeToString(sum[:]) != tok.SecretHash {
			t.Fatalf("secret hash of %q", s)
		}
		if !strings.EqualFold(trimmed, "MOULT1."+tok.CAHash+"."+secret) || len(secret) != 32 || strings.ContainsAny(secret, " \r\n") {
			t.Fatalf("%q parses", s)
		}
	})
}
