package main

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

func newLabelCommand(f *clientFlags) *cobra.Command {
	return &cobra.Command{
		Use: "label NAME KEY=VALUE… KEY-…", Short: "Set labels of one host, or take them away",
		Long: `Set labels of one host, or take them away: KEY=VALUE sets one, KEY- takes it away.
The others stay. Keys and values are made of a-z A-Z 0-9 . _ -`,
		Example: "  moult host label web-1 rack=a tier=web\n  moult host label web-1 tier-",
		Args:    cobra.MinimumNArgs(2),
		RunE: f.run(func(cmd *cobra.Command, c *client, args []string) error {
			set, drop, err := parseLabels(args[1:])
			if err != nil {
				return err
			}
			h, err := c.hostByName(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			labels := maps.Clone(h.Labels)
			maps.Copy(labels, set)
			for _, key := range drop {
				delete(labels, key)
			}
			// Only in place of those that were seen: somebody else may be at it.
			in := map[string]any{"labels": labels, "expect_labels": h.Labels}
			var out apiHost
			if err := c.call(cmd.Context(), http.MethodPut, "/api/hosts/"+h.ID+"/labels", in, &out); err != nil {
				return err
			}
			if f.json {
				return printJSON(cmd.OutOrStdout(), out)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s has %s\n", printable(out.Name), orNone(labelWords(out.Labels)))
			return nil
		}),
	}
}

// parseLabels reads KEY=VALUE and KEY- arguments.
func parseLabels(args []string) (set map[string]string, drop []string, err error) {
	set = map[string]string{}
	for _, arg := range args {
		key, value, sets := strings.Cut(arg, "=")
		gone, drops := strings.CutSuffix(arg, "-")
		_, twice := set[key]
		switch {
		case sets && key != "" && !twice:
			set[key] = value
		case sets && twice:
			return nil, nil, fmt.Errorf("%q is set twice; give it once", key)
		case !sets && drops && gone != "":
			drop = append(drop, gone)
		default:
			return nil, nil, fmt.Errorf("%q is not a label; give KEY=VALUE to set one, KEY- to take one away", arg)
		}
	}
	for _, key := range drop {
		if _, sets := set[key]; sets {
			return nil, nil, fmt.Errorf("%q is set and taken away; give one of the two", key)
		}
	}
	return set, drop, nil
}

// labelWords tells labels in the order of their keys.
func labelWords(labels map[string]string) string {
	words := make([]string, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		words = append(words, printable(key+"="+labels[key]))
	}
	return strings.Join(words, " ")
}

func orNone(labels string) string {
	if labels == "" {
		return "no labels"
	}
	return labels
}
