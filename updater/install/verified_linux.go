package install

// byDescriptor: /proc/self/fd/N executes the open file itself, and works for
// #! scripts as well, whose interpreter opens that path again.
const byDescriptor = true
