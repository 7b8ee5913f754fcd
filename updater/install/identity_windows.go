package install

import (
	"os"
	"time"
)

const identifies = false

type identity struct{}

func identify(*os.File) (identity, error) { return identity{}, errNoProof }

func (identity) changed() time.Time { return time.Time{} }
