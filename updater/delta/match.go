package delta

import (
	"context"
	"runtime"
	"sync"
)

const (
	// partLen is how much of the new file is matched at once. The parts are matched
	// side by side; each begins without knowing of the others, which costs an op.
	partLen = 4 << 20
	// A match replaces the alignment that is held when it is longer by more than
	// this than what that alignment has in common: bsdiff's measure.
	betterBy = 8
	// After a difference the alignment is held without a search when of the next
	// lookAhead bytes at least lookAgree agree.
	lookAhead = 32
	lookAgree = 24
)

// match returns how the new file comes of the old one, by bsdiff's algorithm.
// The result does not depend on the number of processors.
func match(ctx context.Context, old, new []byte) ([]op, error) {
	s, err := newSuffixes(old)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	parts := make([][]op, (len(new)+partLen-1)/partLen)
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(len(parts), runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			for i := range next {
				parts[i] = matchPart(ctx, s, new, i*partLen, min(len(new), (i+1)*partLen))
			}
		})
	}
	for i := range parts {
		next <- i
	}
	close(next)
	workers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var ops []op
	for _, part := range parts {
		for _, o := range part {
			if o.copy == 0 && o.extra == 0 {
				continue
			}
			if n := len(ops); n > 0 && ops[n-1].extra == 0 && ops[n-1].old+ops[n-1].copy == o.old {
				ops[n-1].copy += o.copy
				ops[n-1].extra = o.extra
				continue
			}
			ops = append(ops, o)
		}
	}
	return ops, nil
}

// matchPart matches new[begin:end].
func matchPart(ctx context.Context, s *suffixes, new []byte, begin, end int) []op {
	old := s.text
	new = new[:end]
	same := func(at, offset int) bool {
		at2 := at + offset
		return at2 >= 0 && at2 < len(old) && old[at2] == new[at]
	}
	var ops []op
	last, lastOld, offset := begin, min(begin, len(old)), 0 // the alignment held: since new[last], at old[lastOld]
	scan, length, at := begin, 0, 0
	for scan < end {
		agree := 0 // of new[scan:scan+length], bytes that the alignment held has too
		scan += length
		for counted := scan; scan < end; scan++ {
			if scan&0xfff == 0 && ctx.Err() != nil {
				return nil
			}
			if counted == scan {
				if n := resumes(old, new, scan, offset); n > 0 {
					// Held on as far as it goes; the search begins behind.
					scan += n
					counted = scan
					agree = 0
					if scan >= end {
						break
					}
				}
			}
			at, length = s.longest(new[scan:])
			for ; counted < scan+length; counted++ {
				if same(counted, offset) {
					agree++
				}
			}
			if length == agree && length != 0 || length > agree+betterBy {
				break
			}
			if same(scan, offset) && counted > scan {
				agree--
			}
			counted = max(counted, scan+1)
		}
		if length == agree && scan < end {
			continue
		}
		forward := extendForward(old[lastOld:], new[last:scan])
		back := 0
		if scan < end {
			back = extendBack(old[:at], new[last:scan])
		}
		if over := forward + back - (scan - last); over > 0 {
			n := splitOverlap(old, new, lastOld+forward-over, last+forward-over, at-back, scan-back, over)
			forward += n - over
			back -= n
		}
		ops = append(ops, op{
			old: int64(lastOld), new: int64(last), copy: int64(forward),
			extra: int64(scan - back - last - forward),
		})
		last, lastOld, offset = scan-back, at-back, at-scan
	}
	return ops
}

// resumes tells how far new[scan:] agrees, but for a few bytes, with the
// alignment held; 0 when it soon does not.
func resumes(old, new []byte, scan, offset int) int {
	total := 0
	for {
		a, b := scan+total+offset, scan+total
		if a < 0 || a+lookAhead > len(old) || b+lookAhead > len(new) {
			return total
		}
		if n := common(old[a:], new[b:]); n >= lookAhead {
			total += n
			continue
		}
		agree := 0
		for i := range lookAhead {
			if old[a+i] == new[b+i] {
				agree++
			}
		}
		if agree < lookAgree {
			return total
		}
		total += lookAhead / 2
	}
}

// extendForward is how many bytes of both are best copied, those that differ to
// be corrected: the length with the most agreements less disagreements.
func extendForward(old, new []byte) int {
	score, best, length := 0, 0, 0
	for i := range min(len(old), len(new)) {
		if old[i] == new[i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i+1
		}
	}
	return length
}

// extendBack is the same from the ends of both.
func extendBack(old, new []byte) int {
	score, best, length := 0, 0, 0
	for i := 1; i <= min(len(old), len(new)); i++ {
		if old[len(old)-i] == new[len(new)-i] {
			score++
		} else {
			score--
		}
		if score > best {
			best, length = score, i
		}
	}
	return length
}

// splitOverlap tells how many of the n bytes that the alignments a and b both
// want go to a, the one in front.
func splitOverlap(old, new []byte, oldA, newA, oldB, newB, n int) int {
	score, best, length := 0, 0, 0
	for i := range n {
		if new[newA+i] == old[oldA+i] {
			score++
		}
		if new[newB+i] == old[oldB+i] {
			score--
		}
		if score > best {
			best, length = score, i+1
		}
	}
	return length
}
