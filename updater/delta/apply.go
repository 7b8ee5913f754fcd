package delta

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Target names the file that a patch is to make, and from which one.
type Target struct {
	OldDigest, NewDigest string // sha256, as 64 lower-case hex digits
	Length               int64  // of the new file, as it was signed
}

// Apply makes the new file of the old one and a patch, and writes it to out as
// it comes. It reads the patch to its end. The caller verifies the digest of
// what was written: Apply has only compared what the patch claims.
//
// Errors: ErrMalformed, ErrVersion, ErrOtherFiles, ctx's, and those of old, patch
// and out. After an error what was written is of no use.
func Apply(ctx context.Context, old io.ReaderAt, patch io.Reader, want Target, out io.Writer) error {
	h, err := ReadHeader(patch)
	if err != nil {
		return err
	}
	switch {
	case h.OldDigest != want.OldDigest:
		return fmt.Errorf("%w: from %.12s…, not %.12s…", ErrOtherFiles, h.OldDigest, want.OldDigest)
	case h.NewDigest != want.NewDigest:
		return fmt.Errorf("%w: to %.12s…, not %.12s…", ErrOtherFiles, h.NewDigest, want.NewDigest)
	case h.NewLength != want.Length:
		return fmt.Errorf("%w: it makes %d bytes, %d are signed", ErrOtherFiles, h.NewLength, want.Length)
	}
	in, err := newUnpacker(patch)
	if err != nil {
		return err
	}
	defer in.close()
	packed, err := in.next(maxPlanLen, nil)
	if err != nil {
		return err
	}
	plan, err := parsePlan(packed, h.OldLength, h.NewLength)
	if err != nil {
		return err
	}
	a := &applier{in: in, old: window{r: old, end: h.OldLength}, ops: plan.ops}
	if a.predictor, err = newPredictor(plan, old, h.OldLength); err != nil {
		return err
	}
	a.out = newOutput(out)
	err = a.run(ctx)
	if unwritten := a.out.close(); err == nil {
		err = unwritten
	}
	if err != nil {
		return err
	}
	return in.end()
}

// applier makes a new file. It is the truth of its predictor: what it has
// corrected is right, if the patch is.
type applier struct {
	in        *unpacker
	old       window
	out       *output
	ops       []op
	predictor *predictor

	runs, fixes, extra []byte // what is left of the group
	bufs               [3][]byte
	right, wrong       uint64 // bytes of the copies that are right, and then wrong
	chunk              []byte // of the output
	done               int    // bytes of the chunk that are corrected
	err                error
}

func (a *applier) run(ctx context.Context) error {
	for _, o := range a.ops {
		for at := int64(0); at < o.copy; at += chunkLen {
			if err := ctx.Err(); err != nil {
				return err
			}
			var err error
			if a.chunk, err = a.out.room(int(min(chunkLen, o.copy-at))); err != nil {
				return err
			}
			if err := a.old.into(a.chunk, o.old+at); err != nil {
				return err
			}
			a.done = 0
			a.predictor.chunk(a.chunk, o.old+at, o.new+at, a)
			a.upTo(len(a.chunk))
			if a.err != nil {
				return a.err
			}
		}
		for left := o.extra; left > 0; {
			if err := ctx.Err(); err != nil {
				return err
			}
			if len(a.extra) == 0 {
				if err := a.group(); err != nil {
					return err
				}
			}
			n := min(left, chunkLen, int64(len(a.extra)))
			if n == 0 {
				return malformed("a group lacks bytes of the new file")
			}
			to, err := a.out.room(int(n))
			if err != nil {
				return err
			}
			copy(to, a.extra)
			a.extra = a.extra[n:]
			left -= n
		}
	}
	if len(a.runs)+len(a.fixes)+len(a.extra) > 0 || a.right|a.wrong != 0 {
		return malformed("it goes on when the new file is complete")
	}
	return nil
}

// upTo corrects the bytes of the chunk before n.
func (a *applier) upTo(n int) (chunk []byte, sure int) {
	for a.done < n && a.err == nil {
		switch left := uint64(n - a.done); {
		case a.right > 0:
			take := min(left, a.right)
			a.right -= take
			a.done += int(take)
		case a.wrong > 0:
			take := min(left, a.wrong)
			if take > uint64(len(a.fixes)) {
				a.err = malformed("a group lacks corrections")
				return a.chunk, 0
			}
			for i, d := range a.fixes[:take] {
				a.chunk[a.done+i] += d
			}
			a.fixes = a.fixes[take:]
			a.wrong -= take
			a.done += int(take)
		default:
			a.err = a.record()
		}
	}
	return a.chunk, a.done + int(min(a.right, chunkLen))
}

// record reads how many bytes are right and how many then wrong.
func (a *applier) record() error {
	if len(a.runs) == 0 {
		if err := a.group(); err != nil {
			return err
		}
	}
	for _, v := range []*uint64{&a.right, &a.wrong} {
		n := 0
		if *v, n = binary.Uvarint(a.runs); n <= 0 {
			return malformed("a group ends within a run")
		}
		a.runs = a.runs[n:]
	}
	if a.right == 0 && a.wrong == 0 {
		return malformed("a run is empty")
	}
	return nil
}

// group reads the next group. It begins when the one before is used up.
func (a *applier) group() error {
	if len(a.runs)+len(a.fixes)+len(a.extra) > 0 || a.right|a.wrong != 0 {
		return malformed("a group ends before its streams do")
	}
	for i, s := range []*[]byte{&a.runs, &a.fixes, &a.extra} {
		var err error
		if *s, err = a.in.next(maxGroupLen, a.bufs[i]); err != nil {
			return err
		}
		a.bufs[i] = (*s)[:0]
	}
	return nil
}

// unpacker reads the compressed parts of a patch.
type unpacker struct {
	r      *bufio.Reader
	zstd   *zstd.Decoder
	packed []byte
}

func newUnpacker(r io.Reader) (*unpacker, error) {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxPlanLen), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, err
	}
	return &unpacker{r: bufio.NewReader(r), zstd: d}, nil
}

func (u *unpacker) close() { u.zstd.Close() }

// next reads a part of at most limit bytes: its length before compression, its
// length in the patch, a zstd frame of just that length. It uses buf when that is
// large enough.
func (u *unpacker) next(limit uint64, buf []byte) ([]byte, error) {
	length, err := u.number()
	if err != nil {
		return nil, err
	}
	if length > limit {
		return nil, malformed("a part has %d bytes; at most %d are possible", length, limit)
	}
	if length == 0 {
		return buf[:0], nil
	}
	packed, err := u.number()
	if err != nil {
		return nil, err
	}
	if packed > maxPacked || packed > length+length/8+1024 {
		return nil, malformed("%d bytes are compressed to %d", length, packed)
	}
	if uint64(cap(u.packed)) < packed {
		u.packed = make([]byte, packed)
	}
	if _, err := io.ReadFull(u.r, u.packed[:packed]); err != nil {
		return nil, u.broken(err)
	}
	if uint64(cap(buf)) < length {
		buf = make([]byte, 0, length)
	}
	out, err := u.zstd.DecodeAll(u.packed[:packed], buf[:0:length])
	if err != nil {
		return nil, malformed("%v", err)
	}
	if uint64(len(out)) != length {
		return nil, malformed("a part has %d bytes and says %d", len(out), length)
	}
	return out, nil
}

// number reads a varint; binary.ReadUvarint would not tell one that is too large
// from a reader's error.
func (u *unpacker) number() (uint64, error) {
	var b [binary.MaxVarintLen64]byte
	for i := range b {
		var err error
		if b[i], err = u.r.ReadByte(); err != nil {
			return 0, u.broken(err)
		}
		if b[i] < 0x80 {
			if v, n := binary.Uvarint(b[:i+1]); n > 0 {
				return v, nil
			}
			break
		}
	}
	return 0, malformed("a length is no number of 64 bits")
}

// end makes sure that nothing follows.
func (u *unpacker) end() error {
	switch _, err := u.r.ReadByte(); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("read patch: %w", err)
	}
	return malformed("bytes follow on its end")
}

func (u *unpacker) broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return malformed("it ends too early")
	}
	return fmt.Errorf("read patch: %w", err)
}
