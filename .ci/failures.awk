# From the output of `go test -v`: each failed test with its first and last lines,
# and in the end their names with where they complained, so that a log that is cut
# short still has them.
# What a test writes follows the line that names it, however many run side by side.
function note(test, text) {
	if (!(test in count)) count[test] = 0
	if (count[test] < keep) first[test, count[test]] = text
	last[test, count[test]++ % keep] = text
}

BEGIN { keep = 40; complaints = 20 }

/^=== (RUN|CONT|NAME|PAUSE)/ { test = $3; next }

/^ *--- FAIL: / { failed[++failures] = $3; test = $3; next }

/^ *--- (PASS|SKIP): / { delete count[$3]; test = $3; next }

/^panic: |^WARNING: DATA RACE|^FAIL[ \t]|^[^ ]+\.go:[0-9]+:[0-9]+: / { loud[++louds] = $0 }

/level=(INFO|DEBUG)/ { next }

/^ *[a-z0-9_]+_test\.go:[0-9]+: [^-]/ { said[test, told[test]++ % complaints] = substr($0, 1, 200) }

{
	if (test != "") note(test, $0)
	note("", $0)
}

function show(test, i) {
	printf "\n== %s\n", test
	for (i = 0; i < count[test] && i < keep; i++) print first[test, i]
	if (count[test] > 2 * keep) print "…"
	for (i = count[test] > 2 * keep ? count[test] - keep : keep; i < count[test]; i++) print last[test, i % keep]
}

END {
	for (i = 1; i <= failures; i++) show(failed[i])
	if (failures == 0) show("") # it ended before any test failed
	print ""
	for (i = 1; i <= louds; i++) print loud[i]
	for (i = 1; i <= failures; i++) {
		print "failed: " failed[i]
		n = told[failed[i]]
		for (j = n > complaints ? n - complaints : 0; j < n; j++) print said[failed[i], j % complaints]
	}
}
