//go:build !linux

package artifact

// processImage would lead to the running executable when its name is gone; this
// system has no such path.
const processImage = ""
