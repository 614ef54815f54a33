package main

import "context"
func filesRows(ctx context.Context, b *bench) ([]row, error) {return nil, nil}
func imageRows(ctx context.Context, b *bench) ([]row, error) {return nil, nil}
func scratchRows(ctx context.Context, b *bench) ([]row, error) {return nil, nil}
func serveImages(ctx context.Context, i any, b any) ( error) {return nil}
type runTask struct{}
func (r runTask) carryOut() ([]float64, error) {return nil,nil}
