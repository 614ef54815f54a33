# dulwich as a program. Usage: client_dulwich.py clone|shallow DIR URL; fetch DIR; push DIR REFSPEC...
import os, sys
from dulwich import porcelain
from dulwich.errors import GitProtocolError

op, dir, rest = sys.argv[1], sys.argv[2], sys.argv[3:]
who = {"username": os.environ["CLIENT_USER"], "password": os.environ["CLIENT_PASSWORD"]}


class Messages:
    """What porcelain prints, kept so that a ref's refusal can be told by the status too: it raises nothing."""
    encoding, text = "utf-8", b""

    def write(self, data):
        self.text += data
        sys.stdout.buffer.write(data)


out = Messages()
try:
    if op in ("clone", "shallow"):
        porcelain.clone(rest[0], dir, errstream=out, depth=1 if op == "shallow" else None, **who)
    elif op == "fetch":
        porcelain.fetch(dir, "origin", errstream=out, **who)
    elif op == "push":
        porcelain.push(dir, "origin", refspecs=[spec.encode() for spec in rest], errstream=out, **who)
    else:
        sys.exit(64)
except (porcelain.Error, GitProtocolError) as e:
    print("%s: %s" % (type(e).__name__, e))
    sys.exit(1)
except Exception as e:
    print("%s: %s" % (type(e).__name__, e))
    sys.exit(2)
if b" failed: " in out.text:
    sys.exit(1)
