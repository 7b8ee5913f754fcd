package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// The pages under docs/reference are made of the code: `make docs` writes them
// anew, and this test fails when they are not what the code says.
func TestReferenceIsUpToDate(t *testing.T) {
	for name, text := range map[string]string{
		"commands.md":      commandReference(newRootCommand()),
		"configuration.md": configurationReference(),
		"api.md":           apiReference(t),
	} {
		path := filepath.Join("..", "..", "docs", "reference", name)
		if os.Getenv("MOULT_DOCS") != "" {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		have, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ReplaceAll(string(have), "\r\n", "\n") != text {
			t.Errorf("docs/reference/%s is not what the code says; write it anew with: make docs", name)
		}
	}
}

const referenceNotice = "<!-- Made by `make docs`; what is changed here is lost. -->\n\n"

func commandReference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString(referenceNotice + "# Commands\n\nAs `moult COMMAND --help` tells. ")
	b.WriteString("Each flag can be set in the environment and in a file, too: [configuration.md](../configuration.md).\n\n")
	var commands []*cobra.Command
	eachCommand(root, func(cmd *cobra.Command) { commands = append(commands, cmd) })
	b.WriteString("| command | |\n|---|---|\n")
	for _, cmd := range commands[1:] {
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s |\n", cmd.CommandPath(), strings.ReplaceAll(cmd.CommandPath(), " ", "-"), cell(cmd.Short))
	}
	for _, cmd := range commands {
		describeCommand(&b, cmd)
	}
	return b.String()
}

func describeCommand(b *strings.Builder, cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	fmt.Fprintf(b, "\n## %s\n\n", cmd.CommandPath())
	b.WriteString(indented(cmp.Or(cmd.Long, cmd.Short)) + "\n")
	if cmd.Runnable() {
		fmt.Fprintf(b, "\n    %s\n", cmd.UseLine())
	}
	if cmd.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n%s\n", indented(cmd.Example))
	}
	describeFlags(b, "flag", cmd.NonInheritedFlags())
	if inherited := cmd.InheritedFlags(); inherited.HasAvailableFlags() && cmd.HasParent() {
		var names []string
		inherited.VisitAll(func(f *pflag.Flag) { names = append(names, "`--"+f.Name+"`") })
		fmt.Fprintf(b, "\nAnd those of the commands above it: %s.\n", strings.Join(names, ", "))
	}
}

// indented makes blocks of what help indents, by two more.
func indented(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  ") {
			lines[i] = "  " + line
		} else if i > 0 && strings.HasPrefix(lines[i-1], "   ") && line != "" {
			lines[i] = "\n" + line
		}
	}
	return strings.Join(lines, "\n")
}

func describeFlags(b *strings.Builder, head string, flags *pflag.FlagSet) {
	rows := 0
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		if rows++; rows == 1 {
			fmt.Fprintf(b, "\n| %s | | default |\n|---|---|---|\n", head)
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name += ", `-" + f.Shorthand + "`"
		}
		def := f.DefValue
		if def == "[]" || def == "false" {
			def = ""
		}
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, cell(f.Usage), def)
	})
}

// cell is a text as a table takes it.
func cell(text string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ", "<", "&lt;").Replace(text)
}

func configurationReference() string {
	var b strings.Builder
	b.WriteString(referenceNotice + "# Configuration, key by key\n\nHow files, environment and flags go together is told in [configuration.md](../configuration.md). ")
	b.WriteString("*Reload* says what takes effect without a restart.\n")
	for _, role := range configRoles {
		fmt.Fprintf(&b, "\n## %s\n\n`moult config example %s` prints all of this as a file.\n", strings.ToUpper(role[:1])+role[1:], role)
		group := ""
		for _, k := range configKeys(role) {
			if k.Group != group {
				group = k.Group
				fmt.Fprintf(&b, "\n%s\n\n| key | type | default | example | reload | |\n|---|---|---|---|---|---|\n", strings.TrimSuffix(group, ".")+":")
			}
			example, reload := k.Example, ""
			if example == k.Default {
				example = ""
			}
			if k.Reload {
				reload = "yes"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %s |\n", k.Key, k.Type, quoted(k.Default), quoted(example), reload, cell(k.Help))
		}
	}
	return b.String()
}

func quoted(text string) string {
	if text == "" {
		return ""
	}
	return "`" + cell(text) + "`"
}

// openAPI is what the reference shows of webui/openapi.json.
type openAPI struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct {
		Schemas   map[string]apiSchema
		Responses map[string]struct{ Description string }
	}
}

type apiOperation struct {
	Summary, Description string
	Role                 string `json:"x-role"`
	Security             *[]any
	Parameters           []apiParameter
	RequestBody          struct{ Content map[string]apiContent }
	Responses            map[string]struct {
		Ref         string `json:"$ref"`
		Description string
		Content     map[string]apiContent
	}
}

type apiParameter struct {
	Name, In, Description string
	Required              bool
}

type apiContent struct{ Schema apiSchema }

type apiSchema struct {
	Ref         string `json:"$ref"`
	Type        any
	Description string
	Format      string
	Enum        []any
	Items       *apiSchema
	Properties  map[string]apiSchema
	Required    []string
	Additional  *json.RawMessage `json:"additionalProperties"`
}

// word names a schema's type, with a link where it has a name.
func (s apiSchema) word() string {
	switch {
	case s.Ref != "":
		name := s.Ref[strings.LastIndex(s.Ref, "/")+1:]
		return fmt.Sprintf("[%s](#%s)", name, strings.ToLower(name))
	case s.Items != nil:
		return "list of " + s.Items.word()
	case len(s.Enum) > 0:
		values := make([]string, len(s.Enum))
		for i, v := range s.Enum {
			values[i] = fmt.Sprintf("`%v`", v)
		}
		return strings.Join(values, ", ")
	}
	kind := fmt.Sprint(s.Type)
	if list, ok := s.Type.([]any); ok {
		words := make([]string, len(list))
		for i, v := range list {
			words[i] = fmt.Sprint(v)
		}
		kind = strings.Join(words, " or ")
	}
	if s.Format != "" {
		kind += " (" + s.Format + ")"
	}
	return kind
}

var apiMethods = []string{"get", "post", "put", "patch", "delete"}

func apiReference(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "webui", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	var api openAPI
	if err := json.Unmarshal(text, &api); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(referenceNotice + "# The HTTP API, request by request\n\nAuthentication, reads, errors and events are told in [api.md](../api.md), the codes of errors in\n[troubleshooting.md](../troubleshooting.md#codes-of-the-api). A running server has this as an OpenAPI document at `/api/openapi.json`.\n")
	for _, path := range slices.Sorted(maps.Keys(api.Paths)) {
		var shared []apiParameter
		if raw, ok := api.Paths[path]["parameters"]; ok {
			if err := json.Unmarshal(raw, &shared); err != nil {
				t.Fatal(err)
			}
		}
		for _, method := range apiMethods {
			raw, ok := api.Paths[path][method]
			if !ok {
				continue
			}
			var op apiOperation
			if err := json.Unmarshal(raw, &op); err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			op.Parameters = append(shared[:len(shared):len(shared)], op.Parameters...)
			describeOperation(&b, api, method, path, op)
		}
	}
	b.WriteString("\n# What is sent and answered\n")
	for _, name := range slices.Sorted(maps.Keys(api.Components.Schemas)) {
		describeSchema(&b, name, api.Components.Schemas[name])
	}
	return b.String()
}

func describeOperation(b *strings.Builder, api openAPI, method, path string, op apiOperation) {
	fmt.Fprintf(b, "\n## %s %s\n\n%s.", strings.ToUpper(method), path, cell(op.Summary))
	if op.Description != "" {
		fmt.Fprintf(b, " %s", cell(op.Description))
	}
	switch {
	case op.Role != "":
		fmt.Fprintf(b, " Role: %s.", op.Role)
	case op.Security != nil && len(*op.Security) == 0:
		b.WriteString(" Without login.")
	}
	b.WriteString("\n")
	if len(op.Parameters) > 0 {
		b.WriteString("\n| parameter | in | |\n|---|---|---|\n")
		for _, p := range op.Parameters {
			name := "`" + p.Name + "`"
			if p.Required && p.In != "path" {
				name += ", required"
			}
			fmt.Fprintf(b, "| %s | %s | %s |\n", name, p.In, cell(p.Description))
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(op.RequestBody.Content)) {
		fmt.Fprintf(b, "\nBody, `%s`: %s\n", kind, op.RequestBody.Content[kind].Schema.word())
	}
	b.WriteString("\n| answer | |\n|---|---|\n")
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		r := op.Responses[status]
		if r.Ref != "" {
			r.Description = api.Components.Responses[r.Ref[strings.LastIndex(r.Ref, "/")+1:]].Description
		}
		words := cell(r.Description)
		for _, kind := range slices.Sorted(maps.Keys(r.Content)) {
			if schema := r.Content[kind].Schema; schema.Ref != "" {
				words += ": " + schema.word()
			} else if kind != "application/json" {
				words += ": `" + kind + "`"
			}
		}
		fmt.Fprintf(b, "| %s | %s |\n", status, words)
	}
}

func describeSchema(b *strings.Builder, name string, s apiSchema) {
	fmt.Fprintf(b, "\n## %s\n", name)
	if s.Description != "" {
		fmt.Fprintf(b, "\n%s\n", cell(s.Description))
	}
	if len(s.Properties) == 0 {
		fmt.Fprintf(b, "\n%s\n", s.word())
		return
	}
	b.WriteString("\n| field | type | |\n|---|---|---|\n")
	for _, field := range slices.Sorted(maps.Keys(s.Properties)) {
		p := s.Properties[field]
		words := cell(p.Description)
		if !slices.Contains(s.Required, field) {
			words = strings.TrimSuffix("may be missing; "+words, "; ")
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", field, p.word(), words)
	}
}

// The manual pages are made of the commands: `make man` has this write them to the
// directory that MOULT_MAN names. They are the same wherever they are made.
func TestManPages(t *testing.T) {
	dir := t.TempDir()
	mustWriteManPages(t, dir)
	if to := os.Getenv("MOULT_MAN"); to != "" {
		if err := os.MkdirAll(to, 0o755); err != nil {
			t.Fatal(err)
		}
		mustWriteManPages(t, to)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "moult*.1"))
	if err != nil || len(pages) < 60 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	host, _ := os.Hostname()
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range []string{".SH NAME", ".SH SYNOPSIS", ".SH EXAMPLE"} {
			if !bytes.Contains(text, []byte(section)) {
				t.Errorf("%s has no %s", filepath.Base(page), section)
			}
		}
		if len(host) > 3 && bytes.Contains(text, []byte(`"`+host+`"`)) {
			t.Errorf("%s names this machine", filepath.Base(page))
		}
	}
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		t.Log("mandoc is not here to read the pages")
		return
	}
	out, err := exec.Command(mandoc, append([]string{"-T", "lint", "-W", "error"}, pages...)...).CombinedOutput()
	if err != nil {
		t.Errorf("mandoc: %v\n%s", err, out)
	}
}

func mustWriteManPages(t *testing.T, dir string) {
	t.Helper()
	date := time.Unix(0, 0).UTC()
	if seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil {
		date = time.Unix(seconds, 0).UTC()
	}
	root := newRootCommand()
	eachCommand(root, func(cmd *cobra.Command) { cmd.DisableAutoGenTag = true })
	header := &doc.GenManHeader{Section: "1", Source: "moult", Manual: "moult", Date: &date}
	if err := doc.GenManTree(root, header, dir); err != nil {
		t.Fatal(err)
	}
}
