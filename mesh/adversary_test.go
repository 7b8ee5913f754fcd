package mesh

import (
	"bytes"
	"crypto/ed25519"
	"math/rand/v2"
	"testing"
)

// Of ten thousand forgeries of a host's record none is the host's word.
func TestMutatedRecordsAreRefused(t *testing.T) {
	public := fixedKey().Public().(ed25519.PublicKey)
	const seed, mutations = 23, 10_000
	r := rand.New(rand.NewPCG(seed, seed))
	for _, record := range []Record{smallRecord(), largestRecord()} {
		good, err := record.Sign(testCluster, fixedKey())
		must(t, err)
		parsed := 0
		for i := range mutations / 2 {
			mutant := bytes.Clone(good.Raw)
			switch r.IntN(4) {
			case 0:
				mutant[r.IntN(len(mutant))] ^= 1 << r.IntN(8)
			case 1:
				mutant[r.IntN(len(mutant))] = byte(r.Uint32())
			case 2:
				mutant = mutant[:r.IntN(len(mutant))]
			default:
				a, b := r.IntN(len(mutant)), r.IntN(len(mutant))
				mutant[a], mutant[b] = mutant[b], mutant[a]
			}
			if bytes.Equal(mutant, good.Raw) {
				continue
			}
			s, err := DecodeRecord(mutant)
			if err != nil {
				continue
			}
			parsed++
			if s.Verify(testCluster, public) {
				t.Fatalf("seed %d, mutation %d verifies: %+v", seed, i, s.Record)
			}
		}
		if parsed < 100 {
			t.Errorf("only %d of the mutants came as far as the signature", parsed)
		}
		if good.Verify("another-"+testCluster, public) {
			t.Error("the record counts in another cluster")
		}
	}
}
