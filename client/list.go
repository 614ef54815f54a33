package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/cofferdam/cofferdam/api"
)

// Page asks for a part of a list.
type Page struct {
	Limit  int    // the server's usual if 0
	After  string // cursor: Next of the page before
	Search string // part of a name
}

func (p Page) values() url.Values {
	v := url.Values{}
	if p.Limit != 0 {
		v.Set("limit", strconv.Itoa(p.Limit))
	}
	set(v, "after", p.After)
	set(v, "search", p.Search)
	return v
}

func set(v url.Values, name string, values ...string) {
	for _, value := range values {
		if value != "" {
			v.Add(name, value)
		}
	}
}

// All goes through all pages of a list:
//
//	for agent, err := range client.All(ctx, c.Agents) { … }
//
// It ends with the first error.
func All[T any](ctx context.Context, list func(context.Context, Page) (api.Page[T], error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		p := Page{Limit: 500}
		for {
			page, err := list(ctx, p)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, item := range page.Items {
				if !yield(item, nil) {
					return
				}
			}
			if p.After = page.Next; p.After == "" {
				return
			}
		}
	}
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodGet, path: path, query: query}, &out)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, version int64, body any) (T, error) {
	var out T
	err := c.call(ctx, request{method: http.MethodPost, path: path, body: body, version: version}, &out)
	return out, err
}

func change[T any](ctx context.Context, c *Client, method, path string, version int64, body any) (T, error) {
	var out T
	err := c.call(ctx, request{method: method, path: path, body: body, version: version}, &out)
	return out, err
}

func (c *Client) remove(ctx context.Context, path string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: path}, nil)
}

func items[T any](page api.Page[T], err error) ([]T, error) { return page.Items, err }
