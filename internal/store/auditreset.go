package store

import "context"

// ResetAudit empties the audit index, for all tenants: the log that it was made from is gone or was cut off, so its places are of no use.
func (db *DB) ResetAudit(ctx context.Context) error {
	return db.Within(ctx, func(tx *DB) error {
		if _, err := tx.auditState(ctx, true); err != nil {
			return err
		}
		for _, statement := range []string{
			"DELETE FROM audit", "DELETE FROM audit_bits", "DELETE FROM audit_block", "UPDATE audit_state SET position = 0, seq = 0, sealed = 0",
		} {
			if _, err := tx.write(ctx, "empty the audit index", statement); err != nil {
				return err
			}
		}
		return nil
	})
}
