package webui

import (
	_ "embed"
	"net/http"
)

// openAPI describes the API. It is written by hand; a test compares it with the
// routes and with what they answer.
//
//go:embed openapi.json
var openAPI []byte

func getOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI) // an error means that the client is gone
	return nil
}
