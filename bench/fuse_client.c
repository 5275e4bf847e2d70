/* One operation over and over on a mount, for bench/fuse.py: client OPERATION PATH SECONDS prints operations a second.
   cc -O2 fuse_client.c -o client */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char buf[1 << 17];

static void check(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void list(const char *path, int with_stat) {
    DIR *d = opendir(path);
    check(d != NULL, path);
    struct stat st;
    for (struct dirent *e; (e = readdir(d));)
        if (with_stat)
            check(!fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW), e->d_name);
    closedir(d);
}

int main(int argc, char **argv) {
    check(argc == 4, "usage: client OPERATION PATH SECONDS");
    const char *op = argv[1], *path = argv[2];
    struct stat st;
    int fd = !strcmp(op, "append") ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600)
             : !strcmp(op, "pread") || !strcmp(op, "fstat") ? open(path, O_RDONLY) : -1;
    long count = 0;
    double begin = now(), end = begin + atof(argv[3]);
    for (; count % 16 || now() < end; count++) {
        if (!strcmp(op, "stat"))
            check(!stat(path, &st), path);
        else if (!strcmp(op, "fstat"))
            check(!fstat(fd, &st), path);
        else if (!strcmp(op, "pread"))
            check(pread(fd, buf, 400, 0) >= 0, path);
        else if (!strcmp(op, "append"))
            check(write(fd, "hello\n", 6) == 6, path);
        else if (!strcmp(op, "open-read-close")) {
            int f = open(path, O_RDONLY);
            check(f >= 0 && read(f, buf, sizeof buf) > 0, path);
            close(f);
        } else if (!strcmp(op, "open-write-close")) {
            int f = open(path, O_WRONLY | O_TRUNC);
            check(f >= 0 && write(f, "hello\n", 6) == 6, path);
            close(f);
        } else if (!strcmp(op, "sequential-read")) {
            int f = open(path, O_RDONLY);
            check(f >= 0, path);
            while (read(f, buf, sizeof buf) > 0)
                ;
            close(f);
        } else
            list(path, strcmp(op, "readdir"));
        if (!strcmp(op, "readdir") || !strcmp(op, "ls-l") || !strcmp(op, "sequential-read"))
            count += 15; /* look at the clock each time: these are long */
    }
    int weight = strcmp(op, "readdir") && strcmp(op, "ls-l") && strcmp(op, "sequential-read") ? 1 : 16;
    printf("%.1f\n", count / weight / (now() - begin));
    return 0;
}
