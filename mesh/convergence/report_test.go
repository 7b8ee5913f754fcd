package convergence

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
)

// report is the file that the results go to, a row at a time: runs of some systems or
// sizes after the other fill one table.
type report struct {
	path    string
	Cores   int      `json:"cores"`
	Go      string   `json:"go"`
	Results []result `json:"results"`
}

// openReport reads what earlier runs wrote, if there were any.
func openReport(path string) (*report, error) {
	r := &report{path: path}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err == nil:
		err = json.Unmarshal(b, r)
	}
	if err != nil {
		return nil, fmt.Errorf("read the report %s: %w", path, err)
	}
	r.Cores, r.Go = runtime.NumCPU(), runtime.Version()
	return r, os.MkdirAll(filepath.Dir(path), 0o755)
}

// add writes rows, in place of those of the same system and size.
func (r *report) add(rows ...result) error {
	for _, row := range rows {
		r.Results = slices.DeleteFunc(r.Results, func(old result) bool {
			return old.System == row.System && old.Members == row.Members && old.Simulated == row.Simulated
		})
		r.Results = append(r.Results, row)
	}
	slices.SortStableFunc(r.Results, func(a, b result) int { return a.Members - b.Members })
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(r.path, append(b, '\n'), 0o644)
}

// readSimulated reads the rows that TestRosterConvergence of package mesh wrote.
func readSimulated(path string) (rows []result, err error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // make bench-convergence-simulated was not run
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		r := result{System: "moult", Simulated: true}
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		rows = append(rows, r)
	}
	return rows, nil
}
