package nodekit

import (
	"runtime"
	"testing"
)

func TestOneCoreUnlessTheEnvironmentSaysOtherwise(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	runtime.GOMAXPROCS(3)
	t.Setenv("GOMAXPROCS", "3")
	KeepToOneCore()
	if n := runtime.GOMAXPROCS(0); n != 3 {
		t.Errorf("GOMAXPROCS=3 in the environment gives %d", n)
	}
	t.Setenv("GOMAXPROCS", "")
	KeepToOneCore()
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("it runs on %d cores", n)
	}
}
