# libgit2 as a program, by pygit2. Usage: client_libgit2.py clone DIR URL; fetch DIR; push DIR REFSPEC...
import os, sys
import pygit2

op, dir, rest = sys.argv[1], sys.argv[2], sys.argv[3:]
refused = []


class Callbacks(pygit2.RemoteCallbacks):
    tried = False

    def credentials(self, url, username, allowed):
        if self.tried:
            raise pygit2.GitError("the credential was not accepted")
        self.tried = True
        return pygit2.UserPass(os.environ["CLIENT_USER"], os.environ["CLIENT_PASSWORD"])

    def sideband_progress(self, text):
        print("remote: " + text, end="")

    def push_update_reference(self, name, message):
        print("push_update_reference: %s: %s" % (name, message))
        if message is not None:
            refused.append(name)


try:
    if op == "clone":
        pygit2.clone_repository(rest[0], dir, callbacks=Callbacks())
    elif op == "fetch":
        pygit2.Repository(dir).remotes["origin"].fetch(callbacks=Callbacks())
    elif op == "push":
        pygit2.Repository(dir).remotes["origin"].push(rest, callbacks=Callbacks())
    else:
        sys.exit(64)
except Exception as e:
    print("%s: %s" % (type(e).__name__, e))
    sys.exit(1)
sys.exit(1 if refused else 0)
