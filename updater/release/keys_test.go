package release

import (
	"bytes"
	"encoding/base64"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// signer is a key pair under a short name.
type signer struct{ public, secret string }

func mustSigners(t testing.TB, n int) []signer {
	t.Helper()
	out := make([]signer, n)
	for i := range out {
		public, secret := mustKeys(t)
		line, err := ParsePublicKey(public)
		must(t, err)
		out[i] = signer{line, secret}
	}
	return out
}

func lines(signers ...signer) (out []string) {
	for _, s := range signers {
		out = append(out, s.public)
	}
	return out
}

// mustState signs a statement with some keys.
func mustState(t testing.TB, s Statement, by ...signer) SignedStatement {
	t.Helper()
	s.Cluster, s.Created = "c1", created
	signed, err := SignStatement(by[0].secret, s)
	must(t, err)
	for _, k := range by[1:] {
		signed.Signature, err = AddSignature(k.secret, signed.Statement, signed.Signature)
		must(t, err)
	}
	return signed
}

// A signature by one key of two, where two have to sign, is none.
func TestThreshold(t *testing.T) {
	k := mustSigners(t, 4)
	text := mustJSON(t, goodManifest())
	by := func(signers ...signer) (signature []byte) {
		for _, s := range signers {
			var err error
			signature, err = AddSignature(s.secret, text, signature)
			must(t, err)
		}
		return signature
	}
	twice := slices.Concat(by(k[0]), by(k[0]))
	two := KeySet{Threshold: 2, Keys: lines(k[0], k[1], k[2])}
	// The same key under another id: its holder is one signer all the same.
	raw, err := base64.StdEncoding.DecodeString(k[0].public)
	must(t, err)
	raw[2] ^= 1
	alias := base64.StdEncoding.EncodeToString(raw)
	block := strings.Split(string(by(k[0])), "\n")
	sig, err := base64.StdEncoding.DecodeString(block[1])
	must(t, err)
	sig[2] ^= 1
	block[1] = base64.StdEncoding.EncodeToString(sig)
	aliased := slices.Concat(by(k[0]), []byte(strings.Join(block, "\n")))
	for name, tc := range map[string]struct {
		set       KeySet
		signature []byte
		want      error
	}{
		"one of two":                  {two, by(k[0]), ErrTooFewSignatures},
		"one of two, the other":       {two, by(k[2]), ErrTooFewSignatures},
		"one key, signed twice":       {two, twice, ErrTooFewSignatures},
		"one and a stranger":          {two, by(k[0], k[3]), ErrTooFewSignatures},
		"a stranger":                  {two, by(k[3]), ErrBadSignature},
		"two":                         {two, by(k[0], k[1]), nil},
		"two, in another order":       {two, by(k[2], k[0]), nil},
		"two behind a stranger":       {two, by(k[3], k[1], k[2]), nil},
		"all":                         {two, by(k[0], k[1], k[2]), nil},
		"a key pinned under two ids":  {KeySet{Threshold: 2, Keys: []string{k[0].public, alias}}, aliased, ErrTooFewSignatures},
		"a threshold that is missing": {KeySet{Keys: lines(k[0], k[1])}, by(k[1]), nil},
		"a threshold beyond the keys": {KeySet{Threshold: 3, Keys: lines(k[0], k[1])}, by(k[0], k[1]), ErrTooFewSignatures},
	} {
		if _, err := Verify(tc.set, text, tc.signature); !errors.Is(err, tc.want) || (tc.want == nil && err != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if again := by(k[0], k[1], k[0]); !bytes.Equal(again, by(k[0], k[1])) {
		t.Error("a second signature of one key was added")
	}
}

func TestKeySetCheck(t *testing.T) {
	k := mustSigners(t, MaxKeys+1)
	raw, err := base64.StdEncoding.DecodeString(k[0].public)
	must(t, err)
	raw[3] ^= 1
	for name, tc := range map[string]struct {
		set  KeySet
		says string
	}{
		"none":             {KeySet{Threshold: 1}, "keys: there are 0"},
		"too many":         {Pinned(lines(k...)...), "keys: there are 9"},
		"no key":           {Pinned("RWQx"), "keys: the 1. of them"},
		"twice":            {Pinned(k[0].public, k[0].public), "count as two signers"},
		"twice, two ids":   {Pinned(k[0].public, base64.StdEncoding.EncodeToString(raw)), "count as two signers"},
		"threshold beyond": {KeySet{Threshold: 3, Keys: lines(k[0], k[1])}, "threshold: 3 of 2"},
		"threshold below":  {KeySet{Threshold: -1, Keys: lines(k[0])}, "threshold: -1"},
	} {
		if err := tc.set.Check(); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, KeySet{Threshold: 2, Keys: lines(k[0], k[1])}.Check())
}

// Keys change only by the word of those that hold the present ones.
func TestStatementsFollowOnTheirSigners(t *testing.T) {
	k := mustSigners(t, 4)
	first := KeySet{Threshold: 1, Keys: lines(k[0])}
	both := mustState(t, Statement{Number: 1, Threshold: 1, Keys: lines(k[0], k[1])}, k[0])
	revoked := mustState(t, Statement{Number: 2, Threshold: 1, Keys: lines(k[1])}, k[1])
	set, err := first.Advance("c1", both)
	must(t, err)
	if !set.Equal(KeySet{Number: 1, Threshold: 1, Keys: lines(k[0], k[1])}) {
		t.Fatalf("the set is %+v", set)
	}
	last, err := set.Advance("c1", revoked)
	must(t, err)
	text := mustJSON(t, goodManifest())
	if _, err := Verify(last, text, mustSign(t, k[0].secret, text)); !errors.Is(err, ErrBadSignature) {
		t.Errorf("a revoked key signs: %v", err)
	}
	if _, err := Verify(last, text, mustSign(t, k[1].secret, text)); err != nil {
		t.Errorf("the new key: %v", err)
	}

	twoOfThree := KeySet{Number: 4, Threshold: 2, Keys: lines(k[0], k[1], k[2])}
	for name, tc := range map[string]struct {
		from    KeySet
		cluster string
		signed  SignedStatement
		want    error
		says    string
	}{
		"by the key that it adds":       {first, "c1", mustState(t, Statement{Number: 1, Threshold: 1, Keys: lines(k[3])}, k[3]), ErrBadSignature, ""},
		"by a key that was taken out":   {last, "c1", mustState(t, Statement{Number: 3, Threshold: 1, Keys: lines(k[0])}, k[0]), ErrBadSignature, ""},
		"again":                         {last, "c1", revoked, ErrStatementKnown, ""},
		"an earlier one":                {last, "c1", both, ErrStatementKnown, ""},
		"one left out":                  {first, "c1", revoked, ErrStatementGap, ""},
		"another cluster's":             {first, "c2", both, nil, "is for cluster"},
		"one of two":                    {twoOfThree, "c1", mustState(t, Statement{Number: 5, Threshold: 1, Keys: lines(k[0])}, k[0]), ErrTooFewSignatures, ""},
		"one of two and a stranger":     {twoOfThree, "c1", mustState(t, Statement{Number: 5, Threshold: 1, Keys: lines(k[0])}, k[0], k[3]), ErrTooFewSignatures, ""},
		"no signature":                  {first, "c1", SignedStatement{Statement: both.Statement}, ErrBadSignature, ""},
		"a signature over a release":    {first, "c1", SignedStatement{both.Statement, mustSign(t, k[0].secret, text)}, ErrBadSignature, ""},
		"a release for a statement":     {first, "c1", SignedStatement{text, mustSign(t, k[0].secret, text)}, nil, "unknown field"},
		"a signature beyond all bounds": {first, "c1", SignedStatement{both.Statement, append(bytes.Clone(both.Signature), make([]byte, MaxSignatureBytes)...)}, nil, "at most"},
	} {
		set, err := tc.from.Advance(tc.cluster, tc.signed)
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) || len(set.Keys) > 0 {
			t.Errorf("%s: %+v, %v", name, set, err)
		}
	}
	byTwo := mustState(t, Statement{Number: 5, Threshold: 1, Keys: lines(k[3])}, k[2], k[0])
	if set, err := twoOfThree.Advance("c1", byTwo); err != nil || set.Number != 5 {
		t.Errorf("by two of three: %+v, %v", set, err)
	}
}

func TestEachByteOfAStatementCounts(t *testing.T) {
	k := mustSigners(t, 2)
	first := KeySet{Threshold: 1, Keys: lines(k[0])}
	signed := mustState(t, Statement{Number: 1, Threshold: 1, Keys: lines(k[0], k[1])}, k[0])
	for i := range signed.Statement {
		altered := SignedStatement{bytes.Clone(signed.Statement), signed.Signature}
		altered.Statement[i] ^= 1
		if set, err := first.Advance("c1", altered); err == nil {
			t.Fatalf("byte %d altered: %+v", i, set)
		}
	}
	for i := range signed.Statement {
		if _, err := first.Advance("c1", SignedStatement{signed.Statement[:i], signed.Signature}); err == nil {
			t.Fatalf("cut at %d", i)
		}
	}
}

func TestStatementBounds(t *testing.T) {
	k := mustSigners(t, 2)
	good := Statement{Product: KeysProduct, Cluster: "c1", Number: 1, Threshold: 1, Keys: lines(k[0]), Created: created}
	must(t, func() error { _, err := ParseStatement(mustJSON(t, good)); return err }())
	for name, spoil := range map[string]func(*Statement){
		"product":           func(s *Statement) { s.Product = Product },
		"cluster":           func(s *Statement) { s.Cluster = "" },
		"cluster too long":  func(s *Statement) { s.Cluster = strings.Repeat("c", maxVersionBytes+1) },
		"number":            func(s *Statement) { s.Number = 0 },
		"threshold":         func(s *Statement) { s.Threshold = 0 },
		"threshold too big": func(s *Statement) { s.Threshold = 2 },
		"keys":              func(s *Statement) { s.Keys = nil },
		"keys twice":        func(s *Statement) { s.Keys = lines(k[0], k[0]) },
	} {
		s := good
		spoil(&s)
		field, _, _ := strings.Cut(name, " ")
		if _, err := ParseStatement(mustJSON(t, s)); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	text := string(mustJSON(t, good))
	for name, bad := range map[string]string{
		"unknown field": strings.Replace(text, "{", `{"revoked":[],`, 1),
		"twice":         strings.Replace(text, `"number":1`, `"number":1,"number":2`, 1),
		"too long":      text + strings.Repeat(" ", MaxStatementBytes),
		"nothing":       "",
	} {
		if s, err := ParseStatement([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// The stock minisign signs statements and reads the first of several signatures;
// what it signed beside ours counts as the second.
func TestMinisignAsTheSecondSigner(t *testing.T) {
	minisignProgram := program(t)
	k := mustSigners(t, 2)
	dir := t.TempDir()
	signed := mustState(t, Statement{Number: 1, Threshold: 1, Keys: lines(k[1])}, k[0])
	file, key, theirs := filepath.Join(dir, "keys.json"), filepath.Join(dir, "second.key"), filepath.Join(dir, "second.minisig")
	write(t, file, signed.Statement)
	write(t, key, []byte(k[1].secret))
	if out, err := minisignProgram("", "-S", "-W", "-s", key, "-m", file, "-x", theirs); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	signed.Signature = append(signed.Signature, mustRead(t, theirs)...)
	two := KeySet{Threshold: 2, Keys: lines(k[0], k[1])}
	if set, err := two.Advance("c1", signed); err != nil || set.Number != 1 {
		t.Errorf("%+v, %v", set, err)
	}
	write(t, file+".minisig", signed.Signature)
	if out, err := minisignProgram("", "-V", "-P", k[0].public, "-m", file); err != nil || !strings.Contains(out, KeysProduct+" 1") {
		t.Errorf("minisign on two signatures: %v: %s", err, out)
	}
}
