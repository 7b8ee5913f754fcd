package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// loadSettings fills the flags that the command line left alone: from MOULT_*
// in the environment, then from the TOML file. A key that no flag of the command
// bears is refused with its line. The file that MOULT_CONFIG names serves all
// commands: there a key may also be another command's.
func loadSettings(cmd *cobra.Command) error {
	flags := cmd.Flags()
	known := func(flag string) bool { return flags.Lookup(flag) != nil }
	path, _ := flags.GetString("config")
	if path == "" {
		path = os.Getenv("MOULT_CONFIG")
		known = func(flag string) bool { return someCommandHas(cmd.Root(), flag) }
	}
	file := map[string]any{}
	if path != "" {
		var err error
		if file, err = readSettings(path, known); err != nil {
			return err
		}
	}
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" || f.Name == "config" {
			return
		}
		if f.Name == "token" && flags.Changed("token-file") {
			return // typed, so meant: the environment may hold a token for another command
		}
		key := strings.ReplaceAll(f.Name, "-", "_")
		if v, ok := os.LookupEnv("MOULT_" + strings.ToUpper(key)); ok {
			if err := flags.Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment variable MOULT_%s: %w", strings.ToUpper(key), err))
			}
			return
		}
		v, ok := file[key]
		if !ok {
			return
		}
		for _, s := range settingValues(v) {
			if err := flags.Set(f.Name, s); err != nil {
				errs = append(errs, fmt.Errorf("%s: key %q: %w", path, key, err))
			}
		}
	})
	return errors.Join(errs...)
}

func someCommandHas(cmd *cobra.Command, flag string) bool {
	if cmd.LocalFlags().Lookup(flag) != nil {
		return true
	}
	return slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool { return someCommandHas(c, flag) })
}

func settingValues(v any) []string {
	list, ok := v.([]any)
	if !ok {
		return []string{fmt.Sprint(v)}
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return out
}

func readSettings(path string, known func(flag string) bool) (map[string]any, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	values := map[string]any{}
	if err := toml.Unmarshal(text, &values); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			return nil, fmt.Errorf("%s:%d:%d: %s", path, row, col, de.Error())
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !known(strings.ReplaceAll(key, "_", "-")) {
			return nil, fmt.Errorf("%s:%d: unknown key %q; the keys are the command's flags, with _ for - (see --help)",
				path, lineOf(text, key), key)
		}
	}
	return values, nil
}

// lineOf finds the line that sets a top-level key, from 1.
func lineOf(text []byte, key string) int {
	at := regexp.MustCompile(`(?m)^\s*\[?\s*"?` + regexp.QuoteMeta(key) + `"?\s*[\].=]`).FindIndex(text)
	if at == nil {
		return 1
	}
	head := strings.TrimLeft(string(text[at[0]:at[1]]), " \t\r\n")
	return 1 + strings.Count(string(text[:at[1]-len(head)]), "\n")
}
