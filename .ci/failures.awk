# From the output of `go test -v`: each failed test with its last lines, and their
# names once more in the end, where a log that is cut short still has them.
# What a test writes follows the line that names it, however many run side by side.
function note(test, text) {
	if (!(test in count)) count[test] = 0
	said[test, count[test]++ % keep] = text
}

BEGIN { keep = 60 }

/^=== (RUN|CONT|NAME|PAUSE)/ { test = $3; next }

/^ *--- FAIL: / { failed[++failures] = $3; test = $3; next }

/^ *--- (PASS|SKIP): / { delete count[$3]; test = $3; next }

/^panic: |^WARNING: DATA RACE|^FAIL[ \t]|^[^ ]+\.go:[0-9]+:[0-9]+: / { loud[++louds] = $0 }

/level=(INFO|DEBUG)/ { next }

{
	if (test != "") note(test, $0)
	note("", $0)
}

function show(test, last, i) {
	printf "\n== %s\n", test
	last = count[test]
	for (i = last > keep ? last - keep : 0; i < last; i++) print said[test, i % keep]
}

END {
	for (i = 1; i <= failures; i++) show(failed[i])
	if (failures == 0) show("") # it ended before any test failed
	print ""
	for (i = 1; i <= louds; i++) print loud[i]
	for (i = 1; i <= failures; i++) print "failed: " failed[i]
}
