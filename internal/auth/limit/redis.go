package limit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/cofferdam/cofferdam/internal/fault"
)

// redisPatience bounds one question to Redis, so that sign-in fails quickly where Redis is gone.
const redisPatience = 2 * time.Second

// Redis counts in Redis, for several processes together. It is safe for concurrent use.
type Redis struct {
	client *redis.Client
	prefix string
	now    func() time.Time // nil: Redis's own clock, one for all processes
}

// NewRedis returns a limiter on the server that a URL names: redis://, rediss:// or unix://. Nothing is dialled yet. The caller closes it.
func NewRedis(url string) (*Redis, error) {
	o, err := redis.ParseURL(url)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the URL of Redis cannot be read").WithHint("write it like rediss://user:password@host:6379/0")
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = redisPatience, redisPatience, redisPatience, redisPatience
	o.MaxRetries = -1 // a script that was run and not answered must not be counted twice
	o.ContextTimeoutEnabled = true
	o.DisableIdentity = true
	return &Redis{client: redis.NewClient(o), prefix: "cofferdam:limit:"}, nil
}

// Close closes the connections.
func (r *Redis) Close() error { return r.client.Close() }

// Ping asks whether Redis answers.
func (r *Redis) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	if err := r.client.Ping(ctx).Err(); err != nil {
		return unavailable(err)
	}
	return nil
}

// script keeps the allowed attempts of a key in a sorted set, by microsecond. Redis runs it as one step. Times are integers below 2^53: exact in Lua.
// KEYS: the set. ARGV: limit, window in microseconds, a name for this attempt, the time or "".
// It answers 0 when the attempt is allowed, else how many microseconds are to wait.
const script = `
local now
if ARGV[4] == '' then
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
else
  now = tonumber(ARGV[4])
end
local limit, per = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - per))
local count = redis.call('ZCARD', KEYS[1])
if count >= limit then
  local first = redis.call('ZRANGE', KEYS[1], count - limit, count - limit, 'WITHSCORES')
  return math.max(1, first[2] + per - now)
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[3])
redis.call('PEXPIRE', KEYS[1], math.ceil(per / 1000) + 1000)
return 0
`

// Allow reports whether one more attempt under key fits into the limit, and counts it if so; else it says when one will. Redis not answering is
// Unavailable: who asks must refuse.
func (r *Redis) Allow(ctx context.Context, key string, limit int, per time.Duration) (ok bool, retry time.Duration, err error) {
	if err := check(limit, per); err != nil {
		return false, 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, redisPatience)
	defer cancel()
	now := any("")
	if r.now != nil {
		now = r.now().UnixMicro()
	}
	// Hashed: keys hold email addresses, which are nobody's business in Redis, and may be long.
	name := sha256.Sum256([]byte(key))
	wait, err := redis.NewScript(script).Run(ctx, r.client, []string{r.prefix + hex.EncodeToString(name[:])}, limit, per.Microseconds(), rand.Text(), now).Int64()
	if err != nil {
		return false, 0, unavailable(err)
	}
	return wait == 0, time.Duration(wait) * time.Microsecond, nil
}

func unavailable(err error) error {
	return fault.New(fault.Unavailable, "the rate limits cannot be asked now").WithHint("look at the server's Redis").Because(err)
}
