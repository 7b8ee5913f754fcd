package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Where a setting comes from; the first one that has it wins.
type settingOrigin int

const (
	fromFlag settingOrigin = iota
	fromEnvironment
	fromFile
	fromDefault
)

// insteadOf names flags of which the one that comes from nearer counts alone:
// a token that is typed, where the file names one for another command.
var insteadOf = map[string]string{"token": "token-file", "token-file": "token"}

// loadSettings fills the flags that the command line left alone: from MOULT_*
// in the environment, then from the TOML file. A key that no flag of the command
// bears is refused with its line. The file that MOULT_CONFIG names serves all
// commands: there a key may also be another command's.
func loadSettings(cmd *cobra.Command) error {
	flags := cmd.Flags()
	path, known := settingsPath(cmd)
	var file *settingsFile
	if path != "" {
		var err error
		if file, err = readSettings(path); err != nil {
			return err
		}
		file.refuseUnknown(known)
		cmd.SetContext(context.WithValue(contextOf(cmd), settingsFileKey{}, file))
	}
	origins := map[string]settingOrigin{}
	flags.VisitAll(func(f *pflag.Flag) { origins[f.Name] = originOf(f, file) })
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		origin := origins[f.Name]
		if other, ok := insteadOf[f.Name]; ok && flags.Lookup(other) != nil && origins[other] < origin {
			return
		}
		switch origin {
		case fromEnvironment:
			if err := flags.Set(f.Name, os.Getenv(variableOf(f.Name))); err != nil {
				errs = append(errs, fmt.Errorf("environment variable %s: %w", variableOf(f.Name), err))
			}
		case fromFile:
			file.set(flags, f)
		case fromFlag, fromDefault:
		}
	})
	if file != nil {
		errs = append(errs, file.err())
	}
	return errors.Join(errs...)
}

// contextOf is a command's context; completion asks before there is one.
func contextOf(cmd *cobra.Command) context.Context {
	if ctx := cmd.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

type settingsFileKey struct{}

// settingsPath is the file that a command reads, "" without one, and the flags
// that may stand in it.
func settingsPath(cmd *cobra.Command) (path string, known []string) {
	if path, _ = cmd.Flags().GetString("config"); path != "" {
		return path, flagNames(cmd)
	}
	return os.Getenv("MOULT_CONFIG"), allFlagNames(newRootCommand())
}

func originOf(f *pflag.Flag, file *settingsFile) settingOrigin {
	if f.Name == "help" || f.Name == "config" {
		return fromDefault
	}
	if f.Changed {
		return fromFlag
	}
	if _, ok := os.LookupEnv(variableOf(f.Name)); ok {
		return fromEnvironment
	}
	if file != nil && file.has(keyOf(f.Name)) {
		return fromFile
	}
	return fromDefault
}

func variableOf(flag string) string { return "MOULT_" + strings.ToUpper(keyOf(flag)) }
func keyOf(flag string) string      { return strings.ReplaceAll(flag, "-", "_") }
func flagOf(key string) string      { return strings.ReplaceAll(key, "_", "-") }

// flagNames are the flags of a command that may be settings.
func flagNames(cmd *cobra.Command) (names []string) {
	add := func(f *pflag.Flag) {
		if f.Name != "help" && f.Name != "config" {
			names = append(names, f.Name)
		}
	}
	cmd.LocalFlags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	return names
}

func allFlagNames(cmd *cobra.Command) []string {
	names := flagNames(cmd)
	for _, c := range cmd.Commands() {
		names = append(names, allFlagNames(c)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// placed says of what is wrong with a command's settings where in its file it
// stands, if that is where it comes from.
func placed(cmd *cobra.Command, err error) error {
	file, ok := contextOf(cmd).Value(settingsFileKey{}).(*settingsFile)
	if !ok || err == nil {
		return err
	}
	var rest []error
	for _, e := range parts(err) {
		if !file.blame(cmd.Flags(), e) {
			rest = append(rest, e)
		}
	}
	return errors.Join(append([]error{file.err()}, rest...)...)
}

// parts takes joined errors apart.
func parts(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, parts(e)...)
	}
	return out
}

var namedFlag = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`--([a-z0-9][a-z0-9-]*)`)
})

// blame notes an error at the setting in the file that it names first.
func (f *settingsFile) blame(flags *pflag.FlagSet, err error) bool {
	text := err.Error()
	for _, m := range namedFlag().FindAllStringSubmatch(text, -1) {
		s, ok := f.find(keyOf(m[1]))
		if !ok || !s.applied {
			continue
		}
		inFile := namedFlag().ReplaceAllStringFunc(text, func(name string) string {
			if flags.Lookup(name[2:]) == nil {
				return name
			}
			return keyOf(name[2:])
		})
		f.note(s.value, "%s", inFile)
		return true
	}
	return false
}
