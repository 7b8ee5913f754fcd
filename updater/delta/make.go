package delta

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"runtime"

	"github.com/klauspost/compress/zstd"
)

// Make writes a patch that makes new of old. The same files give the same patch,
// for one version of the compressor.
//
// It holds MakeMemory at most, both files included. Sorting the suffixes of old,
// about a second for 20 MB, does not end early when ctx does.
//
// Errors: ErrTooLarge, ErrTooDifferent, ctx's, and those of out.
func Make(ctx context.Context, old, new []byte, out io.Writer) error {
	if err := checkLengths(len(old), len(new)); err != nil {
		return err
	}
	ops, err := match(ctx, old, new)
	if err != nil {
		return err
	}
	runtime.GC() // what the compressor takes does not come on top of the sorted suffixes
	z, err := newCompressor()
	if err != nil {
		return err
	}
	defer func() { _ = z.Close() }()
	best, err := encode(ctx, z, old, new, &plan{ops: ops})
	if err != nil {
		return err
	}
	if l := describe(old, new); len(l.regions) > 0 {
		predicted, err := encode(ctx, z, old, new, &plan{layout: l, ops: ops})
		if err != nil {
			return err
		}
		if len(predicted) < len(best) {
			best = predicted
		}
	}
	header, err := Header{
		OldDigest: digest(old), NewDigest: digest(new), OldLength: int64(len(old)), NewLength: int64(len(new)),
	}.marshal()
	if err != nil {
		return err
	}
	if _, err := out.Write(header); err != nil {
		return err
	}
	_, err = out.Write(best)
	return err
}

func checkLengths(old, new int) error {
	if n := max(old, new); n > MaxFileLen {
		return fmt.Errorf("%w: it has %d bytes, and at most %d are possible; publish the release without a patch", ErrTooLarge, n, MaxFileLen)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// encode returns a patch but for its header.
func encode(ctx context.Context, z *zstd.Encoder, old, new []byte, p *plan) ([]byte, error) {
	if len(p.ops) > maxOps {
		return nil, fmt.Errorf("%w: %d pieces, and at most %d are possible", ErrTooDifferent, len(p.ops), maxOps)
	}
	w := &packer{zstd: z}
	raw := p.marshal()
	if len(raw) > maxPlanLen {
		return nil, fmt.Errorf("%w: a plan of %d bytes, and at most %d are possible", ErrTooDifferent, len(raw), maxPlanLen)
	}
	w.put(raw)
	predictor, err := newPredictor(p, bytes.NewReader(old), int64(len(old)))
	if err != nil {
		return nil, err
	}
	e := &encoder{out: w}
	for _, o := range p.ops {
		for at := int64(0); at < o.copy; at += chunkLen {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			n := min(chunkLen, o.copy-at)
			guess := e.buf[:n]
			copy(guess, old[o.old+at:])
			actual := new[o.new+at:][:n]
			predictor.chunk(guess, o.old+at, o.new+at, known(actual))
			e.correct(guess, actual)
		}
		for rest := new[o.new+o.copy:][:o.extra]; len(rest) > 0; {
			n := min(chunkLen, len(rest))
			e.extra = append(e.extra, rest[:n]...)
			rest = rest[n:]
			e.endPiece()
		}
	}
	e.endGroup()
	return w.b, nil
}

// known is a truth: the new file itself.
type known []byte

func (k known) upTo(int) ([]byte, int) { return k, 0 }

// encoder gathers the streams of a group.
type encoder struct {
	out                *packer
	runs, fixes, extra []byte
	right              int
	wrong              []byte
	buf                [chunkLen]byte
}

// correct adds what makes a guess right.
func (e *encoder) correct(guess, actual []byte) {
	for i := 0; i < len(guess); {
		if n := common(guess[i:], actual[i:]); n > 0 {
			if len(e.wrong) > 0 {
				e.endRun()
			}
			e.right += n
			i += n
			continue
		}
		e.wrong = append(e.wrong, actual[i]-guess[i])
		i++
	}
	e.endPiece()
}

func (e *encoder) endRun() {
	if e.right == 0 && len(e.wrong) == 0 {
		return
	}
	e.runs = binary.AppendUvarint(e.runs, uint64(e.right))
	e.runs = binary.AppendUvarint(e.runs, uint64(len(e.wrong)))
	e.fixes = append(e.fixes, e.wrong...)
	e.right, e.wrong = 0, e.wrong[:0]
}

func (e *encoder) endPiece() {
	if len(e.runs)+len(e.fixes)+len(e.extra) >= groupLen {
		e.endGroup()
	}
}

// endGroup ends the run, too, so that no group needs another.
func (e *encoder) endGroup() {
	e.endRun()
	if len(e.runs)+len(e.extra) == 0 {
		return
	}
	for _, s := range []*[]byte{&e.runs, &e.fixes, &e.extra} {
		e.out.put(*s)
		*s = (*s)[:0]
	}
}

// packer writes the compressed parts of a patch.
type packer struct {
	zstd *zstd.Encoder
	b    []byte
}

func newCompressor() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(maxGroupLen), zstd.WithEncoderCRC(true))
}

func (w *packer) put(part []byte) {
	w.b = binary.AppendUvarint(w.b, uint64(len(part)))
	if len(part) == 0 {
		return
	}
	packed := w.zstd.EncodeAll(part, nil)
	w.b = binary.AppendUvarint(w.b, uint64(len(packed)))
	w.b = append(w.b, packed...)
}
