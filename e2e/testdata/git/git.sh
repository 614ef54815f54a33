#!/bin/sh
# git itself. Usage: git.sh clone|shallow|partial DIR URL; fetch DIR; push DIR [-o OPTION] REFSPEC...
op=$1 dir=$2
shift 2
case $op in
clone) git clone -q "$1" "$dir" ;;
shallow) git clone -q --depth 1 "$1" "$dir" ;;
partial) git clone -q --filter=blob:none "$1" "$dir" ;;
fetch) git -C "$dir" fetch -q origin ;;
push) case $1 in -o) o="-o $2"; shift 2 ;; *) o= ;; esac; git -C "$dir" push $o origin "$@" ;;
*) exit 64 ;;
esac
