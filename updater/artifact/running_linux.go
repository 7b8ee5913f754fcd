package artifact

// processImage leads to the running executable even when its name is gone.
const processImage = "/proc/self/exe"
