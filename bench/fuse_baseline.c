/* The baseline of bench/fuse.py: the same names and sizes as the tree that is measured, served by libfuse from memory.
   One thread, no kernel caching, direct I/O: what a mount costs when the service costs nothing.
   cc -O2 fuse_baseline.c $(pkg-config --cflags --libs fuse3) -o baseline; ./baseline -f -s MOUNTPOINT */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MANY 1000
enum { ROOT = 1, AGENTS, DEMO, KV, MANY_OF, STATUS, X, LOG, FIRST };
static const struct { fuse_ino_t parent; const char *name; } names[] = {
    [AGENTS] = {ROOT, "agents"}, [DEMO] = {AGENTS, "demo"}, [KV] = {DEMO, "kv"}, [MANY_OF] = {AGENTS, "many"},
    [STATUS] = {DEMO, "status"}, [X] = {KV, "x"}, [LOG] = {KV, "log"},
};
static char data[FIRST][1 << 20];
static size_t sizes[FIRST] = {[STATUS] = 400, [X] = 6};

static int attributes(fuse_ino_t ino, struct stat *st) {
    memset(st, 0, sizeof *st);
    st->st_ino = ino;
    st->st_nlink = 1;
    if (ino < STATUS)
        st->st_mode = S_IFDIR | 0700;
    else if (ino < FIRST + MANY) {
        st->st_mode = S_IFREG | 0600;
        st->st_size = ino < FIRST ? sizes[ino] : 6;
    } else
        return ENOENT;
    return 0;
}

static fuse_ino_t find(fuse_ino_t parent, const char *name) {
    if (parent == MANY_OF)
        return FIRST + atoi(name + 1);
    for (fuse_ino_t ino = AGENTS; ino < FIRST; ino++)
        if (names[ino].parent == parent && !strcmp(names[ino].name, name))
            return ino;
    return 0;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
    struct fuse_entry_param e;
    memset(&e, 0, sizeof e);
    e.ino = find(parent, name);
    if (!e.ino || attributes(e.ino, &e.attr))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_entry(req, &e);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    struct stat st;
    if (attributes(ino, &st))
        fuse_reply_err(req, ENOENT);
    else
        fuse_reply_attr(req, &st, 0);
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int valid, struct fuse_file_info *fi) {
    do_getattr(req, ino, fi);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
    fi->fh = ino;
    fi->direct_io = 1;
    fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
    if (fi->flags & O_TRUNC && ino < FIRST)
        sizes[ino] = 0;
    fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi) {
    size_t there = ino < FIRST ? sizes[ino] : 0;
    if ((size_t)off >= there)
        fuse_reply_buf(req, NULL, 0);
    else
        fuse_reply_buf(req, data[ino] + off, size < there - off ? size : there - off);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi) {
    if (ino >= FIRST || size > sizeof data[0]) {
        fuse_reply_err(req, EIO);
        return;
    }
    if (ino == LOG)
        off = sizes[LOG] + size > sizeof data[0] ? 0 : sizes[LOG];
    memcpy(data[ino] + off, buf, size);
    sizes[ino] = off + size;
    fuse_reply_write(req, size);
}

static void ok(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) { fuse_reply_err(req, 0); }

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi) {
    char *buf = malloc(size), name[16];
    size_t used = 0;
    for (int i = off; i < MANY; i++) {
        struct fuse_entry_param e;
        memset(&e, 0, sizeof e);
        snprintf(name, sizeof name, "f%04d", i);
        e.ino = FIRST + i;
        attributes(e.ino, &e.attr);
        size_t more = fuse_add_direntry_plus(req, buf + used, size - used, name, &e, i + 1);
        if (more > size - used)
            break;
        used += more;
    }
    fuse_reply_buf(req, buf, used);
    free(buf);
}

static const struct fuse_lowlevel_ops ops = {
    .lookup = do_lookup, .getattr = do_getattr, .setattr = do_setattr, .open = do_open, .read = do_read,
    .write = do_write, .flush = ok, .release = ok, .opendir = do_open, .releasedir = ok, .readdirplus = do_readdirplus,
};

int main(int argc, char **argv) {
    struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
    struct fuse_cmdline_opts opts;
    memset(data, 'x', sizeof data);
    if (fuse_parse_cmdline(&args, &opts) || !opts.mountpoint)
        return 2;
    struct fuse_session *se = fuse_session_new(&args, &ops, sizeof ops, NULL);
    if (!se || fuse_set_signal_handlers(se) || fuse_session_mount(se, opts.mountpoint))
        return 1;
    int failed = fuse_session_loop(se);
    fuse_session_unmount(se);
    fuse_session_destroy(se);
    return failed != 0;
}
