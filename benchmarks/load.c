/* Load on an echo server at 127.0.0.1, from one thread: what is sent next waits for what came back.
 *
 *     load PORT PID KIND CONNECTIONS SIZE DEPTH WARM SECONDS
 *
 *   lines  each connection sends DEPTH lines of SIZE bytes at once and, when all of them are back, again
 *   churn  each connection sends a line, waits for it, closes, and a new one takes its place
 *   bulk   each connection sends SIZE bytes whenever it can, and reads whatever comes back
 *
 * All connections are served once before the clock starts; after WARM seconds what comes back is counted for SECONDS.
 * Prints the bytes counted, the instants between which they were (CLOCK_MONOTONIC), and the CPU seconds that meanwhile
 * the server, process PID, and the load itself used. Any error ends it, with status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum kind { LINES, CHURN, BULK };

struct connection {
    int fd;
    size_t unsent;   /* of the batch */
    size_t received; /* of the batch */
    int wants_out;   /* registered for EPOLLOUT */
};

static enum kind kind;
static int poller;
static struct sockaddr_in server;
static char *batch;
static size_t batch_size;
static unsigned long long counted;
static char input[1 << 20];

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) < 0)
        fail("clock_gettime: %s", strerror(errno));
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* On loopback connect() is done when it returns, so it may block. */
static void dial(struct connection *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("socket: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0)
        fail("connect: %s", strerror(errno));
}

static void watch(struct connection *c, int operation, int wants_out)
{
    struct epoll_event event = {.events = EPOLLIN | (wants_out ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
    c->wants_out = wants_out;
}

static void check(struct connection *c, const char *bytes, size_t size)
{
    if (size > batch_size - c->received || memcmp(bytes, batch + c->received, size))
        fail("the server sent back what it was not sent");
    c->received += size;
}

/* Send one batch and wait for it: the server has accepted this connection and its handler runs. */
static void greet(struct connection *c)
{
    int on = 1;
    struct timeval patience = {.tv_sec = 10};
    size_t sent = 0;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    c->received = 0;
    while (c->received < batch_size) {
        if (sent < batch_size) {
            ssize_t n = send(c->fd, batch + sent, batch_size - sent, MSG_NOSIGNAL);
            if (n < 0)
                fail("send: %s", strerror(errno));
            sent += n;
        }
        ssize_t n = recv(c->fd, input, sizeof input, 0);
        if (n <= 0)
            fail("the server closed a connection, or was silent for 10 s");
        check(c, input, n);
    }
}

static void push(struct connection *c)
{
    while (c->unsent) {
        ssize_t n = send(c->fd, batch + batch_size - c->unsent, c->unsent, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN)
            fail("send: %s", strerror(errno));
        if (n < 0)
            break;
        c->unsent -= n;
    }
    int wants_out = kind == BULK || c->unsent;
    if (wants_out != c->wants_out)
        watch(c, EPOLL_CTL_MOD, wants_out);
}

static void send_batch(struct connection *c)
{
    c->unsent = batch_size;
    c->received = 0;
    push(c);
}

/* Closed with a reset: it leaves nothing behind, while TIME_WAIT would run the machine out of ports. */
static void renew(struct connection *c)
{
    struct linger reset = {.l_onoff = 1};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(c->fd);
    dial(c);
    watch(c, EPOLL_CTL_ADD, 0);
}

static void on_input(struct connection *c)
{
    ssize_t n = recv(c->fd, input, sizeof input, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        fail("the server closed a connection: %s", n ? strerror(errno) : "end of file");
    counted += n;
    if (kind == BULK)
        return;
    check(c, input, n);
    if (c->received < batch_size)
        return;
    if (kind == CHURN)
        renew(c);
    send_batch(c);
}

static void on_output(struct connection *c)
{
    if (kind == BULK && !c->unsent)
        c->unsent = batch_size;
    push(c);
}

static void run(clockid_t server_clock, double warm, double seconds)
{
    struct epoll_event events[256];
    double start = seconds_of(CLOCK_MONOTONIC) + warm, server_start = 0, own_start = 0, now;
    int counting = 0;
    while ((now = seconds_of(CLOCK_MONOTONIC)) < start + seconds) {
        if (!counting && now >= start) {
            counting = 1;
            counted = 0;
            start = now;
            server_start = seconds_of(server_clock);
            own_start = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
        }
        int n = epoll_wait(poller, events, 256, 20);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & ~EPOLLOUT)
                on_input(c);
            if (events[i].events & EPOLLOUT)
                on_output(c);
        }
    }
    printf("%llu %.9f %.9f %.9f %.9f\n", counted, start, now, seconds_of(server_clock) - server_start,
           seconds_of(CLOCK_PROCESS_CPUTIME_ID) - own_start);
}

int main(int argc, char **argv)
{
    clockid_t server_clock;
    if (argc != 9)
        fail("usage: load PORT PID lines|churn|bulk CONNECTIONS SIZE DEPTH WARM SECONDS");
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons(atoi(argv[1]));
    if (clock_getcpuclockid(atoi(argv[2]), &server_clock))
        fail("no process %s", argv[2]);
    kind = !strcmp(argv[3], "bulk") ? BULK : !strcmp(argv[3], "churn") ? CHURN : LINES;
    int connections = atoi(argv[4]);
    size_t size = atol(argv[5]), depth = atol(argv[6]);

    batch_size = size * depth;
    batch = malloc(batch_size);
    struct connection *all = calloc(connections, sizeof *all);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!batch || !all || poller < 0)
        fail("no memory");
    for (size_t i = 0; i < batch_size; i++)
        batch[i] = i % size == size - 1 ? '\n' : 'a' + i / size % 26;

    for (int i = 0; i < connections; i++) {
        dial(&all[i]);
        greet(&all[i]);
        watch(&all[i], EPOLL_CTL_ADD, kind == BULK);
    }
    for (int i = 0; i < connections; i++)
        send_batch(&all[i]);
    run(server_clock, atof(argv[7]), atof(argv[8]));
    return 0;
}
