package webui

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"moult/consensus/fleet"
)

// setLabels gives a host labels in place of those that it has.
func (u *ui) setLabels(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Labels       map[string]string `json:"labels"`
		ExpectLabels map[string]string `json:"expect_labels"`
	}
	if err := decode(w, r, &in); err != nil {
		return err
	}
	h, err := u.picture().agent(chi.URLParam(r, "id"))
	if err != nil {
		return err
	}
	if in.Labels == nil {
		return badRequest("labels: give all labels that the host is to have, {} for none")
	}
	if err := u.propose(r, fleet.HostLabelsSet{HostID: h.ID, Labels: in.Labels, Was: in.ExpectLabels}); err != nil {
		return err
	}
	p := u.picture()
	if h, err = p.agent(h.ID); err != nil {
		return err // removed since
	}
	return ok(w, p.host(h))
}

// labelFilter is a label that hosts of a list must have: "key", or "key=value".
type labelFilter string

func readLabelFilter(text string) (labelFilter, error) {
	key, _, _ := strings.Cut(text, "=")
	if text != "" && !fleet.ValidName(key) {
		return "", badRequest("label: %s is not key=value, or a key", quoted(text))
	}
	return labelFilter(text), nil
}

func (f labelFilter) matches(labels map[string]string) bool {
	if f == "" {
		return true
	}
	key, want, exact := strings.Cut(string(f), "=")
	value, has := labels[key]
	return has && (!exact || value == want)
}

// labelsContain tells whether q, in lower case, is part of a label, told as key=value.
func labelsContain(labels map[string]string, q string) bool {
	for key, value := range labels {
		if strings.Contains(strings.ToLower(labelText(key, value)), q) {
			return true
		}
	}
	return false
}

// labelText tells a label as people write it: "rack=a", or "spare" without a value.
func labelText(key, value string) string {
	if value == "" {
		return key
	}
	return key + "=" + value
}

// labelLines tells labels as they are typed, one a line, by key.
func labelLines(labels map[string]string) string {
	lines := make([]string, 0, len(labels))
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		lines = append(lines, labelText(key, labels[key]))
	}
	return strings.Join(lines, "\n")
}
