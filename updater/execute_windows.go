package updater

import "errors"

func execute(string) error { return errors.New("Windows cannot replace a running process") }
