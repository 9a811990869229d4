/* Load on a server at 127.0.0.1, from one thread: what is sent next waits for what came back.
 *
 *     load PORT PID KIND CONNECTIONS SIZE DEPTH WARM SECONDS [LISTENER]
 *
 *   lines  each connection sends DEPTH lines of SIZE bytes at once and, when all of them are back, again
 *   churn  each connection sends a line, waits for it, closes, and a new one takes its place
 *   bulk   each connection sends SIZE bytes whenever it can, and reads whatever comes back
 *   flow   each connection keeps DEPTH times SIZE bytes under way: as much as comes back it sends anew
 *   file   each connection asks for the file "data", SIZE bytes, all of them 'x', and, when it has come, again
 *
 * With LISTENER, an inherited descriptor, the server is a forwarder: a second thread accepts the connections it makes
 * there, and echoes.
 *
 * All connections are served once before the clock starts; after WARM seconds what comes back is counted for SECONDS.
 * Prints the bytes counted, the instants between which they were (CLOCK_MONOTONIC), and the CPU seconds that meanwhile
 * the server, process PID, and the load itself used, both its threads. Any error ends it, with status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum kind { LINES, CHURN, BULK, FLOW, FILES };

struct connection {
    int fd;
    int poller;
    unsigned awaited; /* the epoll events it is registered for */
    size_t unsent;    /* of the batch */
    size_t received;  /* of the answer */
};

static enum kind kind;
static struct sockaddr_in server;
static char *batch, *answer;
static size_t batch_size, answer_size;
static int unseen; /* MSG_TRUNC, where the bytes are thrown away uncopied, so that the load is not the slower side */
static unsigned long long counted;
static char input[1 << 20];

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _exit(1);
}

static double seconds_of(clockid_t clock)
{
    struct timespec t;
    if (clock_gettime(clock, &t) < 0)
        fail("clock_gettime: %s", strerror(errno));
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int new_poller(void)
{
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        fail("epoll_create1: %s", strerror(errno));
    return poller;
}

static void watch(struct connection *c, int operation, unsigned events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (operation == EPOLL_CTL_MOD && events == c->awaited)
        return;
    if (epoll_ctl(c->poller, operation, c->fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
    c->awaited = events;
}

static void send_at_once(struct connection *c)
{
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* How many of the bytes the kernel took; 0 where it has no room. */
static size_t send_some(struct connection *c, const char *bytes, size_t size)
{
    ssize_t n = send(c->fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && errno != EAGAIN)
        fail("send: %s", strerror(errno));
    return n < 0 ? 0 : n;
}

/* ---- the clients */

/* On loopback connect() is done when it returns, so it may block. */
static void dial(struct connection *c)
{
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        fail("socket: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4); /* others may go by timers (BBR) */
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0)
        fail("connect: %s", strerror(errno));
}

static void check(struct connection *c, size_t size)
{
    if (size > answer_size - c->received || (!unseen && memcmp(input, answer + c->received, size)))
        fail("the server sent what it was not asked for");
    c->received += size;
}

/* Send one batch and wait for the answer: the server has accepted this connection and its handler runs. */
static void greet(struct connection *c)
{
    struct timeval patience = {.tv_sec = 10};
    size_t sent = 0;
    send_at_once(c);
    setsockopt(c->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    c->received = 0;
    while (c->received < answer_size) {
        if (sent < batch_size) {
            ssize_t n = send(c->fd, batch + sent, batch_size - sent, MSG_NOSIGNAL);
            if (n < 0)
                fail("send: %s", strerror(errno));
            sent += n;
        }
        ssize_t n = recv(c->fd, input, sizeof input, 0);
        if (n <= 0)
            fail("the server closed a connection, or was silent for 10 s");
        check(c, n);
    }
}

static void push(struct connection *c)
{
    size_t n = 1;
    for (; c->unsent && n; c->unsent -= n)
        n = send_some(c, batch + batch_size - c->unsent, c->unsent);
    watch(c, EPOLL_CTL_MOD, EPOLLIN | (kind == BULK || c->unsent ? EPOLLOUT : 0));
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
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void on_input(struct connection *c)
{
    ssize_t n = recv(c->fd, input, sizeof input, MSG_DONTWAIT | unseen);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        fail("the server closed a connection: %s", n ? strerror(errno) : "end of file");
    counted += n;
    if (kind == BULK)
        return;
    if (kind == FLOW) {
        c->unsent += n;
        return push(c);
    }
    check(c, n);
    if (c->received < answer_size)
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

static void run(int poller, clockid_t server_clock, double warm, double seconds)
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

/* ---- behind a forwarder, in a thread of its own */

struct echo {
    struct connection connection;
    size_t size;
    char bytes[1 << 18];
};

static void reply(struct echo *e)
{
    struct connection *c = &e->connection;
    c->unsent -= send_some(c, e->bytes + e->size - c->unsent, c->unsent);
    watch(c, EPOLL_CTL_MOD, c->unsent ? EPOLLOUT : EPOLLIN);
}

static void echo(struct echo *e)
{
    ssize_t n = recv(e->connection.fd, e->bytes, sizeof e->bytes, MSG_DONTWAIT | unseen);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        fail("the forwarder closed a connection: %s", n ? strerror(errno) : "end of file");
    e->size = e->connection.unsent = n;
    reply(e);
}

static void welcome(struct connection *listener)
{
    struct echo *e = calloc(1, sizeof *e);
    if (!e)
        fail("no memory");
    e->connection.poller = listener->poller;
    e->connection.fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
    if (e->connection.fd < 0)
        fail("accept: %s", strerror(errno));
    send_at_once(&e->connection);
    watch(&e->connection, EPOLL_CTL_ADD, EPOLLIN);
}

static void *serve(void *argument)
{
    struct connection *listener = argument;
    struct epoll_event events[256];
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int n = epoll_wait(listener->poller, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == listener)
                welcome(listener);
            else if (c->unsent)
                reply((struct echo *)c);
            else
                echo((struct echo *)c);
        }
    }
    return NULL;
}

static void serve_upstream(int listener_fd)
{
    static struct connection listener;
    pthread_t thread;
    listener.fd = listener_fd;
    listener.poller = new_poller();
    if (pthread_create(&thread, NULL, serve, &listener))
        fail("pthread_create");
}

/* ---- */

/* Lines for all but a file: there the batch asks for it, and the answer is its size and what it holds. */
static void prepare(size_t size, size_t depth)
{
    char request[] = "data\n", header[64];
    size_t header_size = kind == FILES ? snprintf(header, sizeof header, "SIZE %zu\n", size) : 0;
    batch_size = kind == FILES ? strlen(request) : size * depth;
    answer_size = kind == FILES ? header_size + size : batch_size;
    batch = malloc(batch_size);
    answer = kind == FILES ? malloc(answer_size) : batch;
    if (!batch || !answer)
        fail("no memory");
    for (size_t i = 0; i < batch_size; i++)
        batch[i] = i % size == size - 1 ? '\n' : 'a' + i / size % 26;
    if (kind == FILES) {
        memcpy(batch, request, batch_size);
        memset(mempcpy(answer, header, header_size), 'x', size);
    }
}

int main(int argc, char **argv)
{
    clockid_t server_clock;
    if (argc != 9 && argc != 10)
        fail("usage: load PORT PID lines|churn|bulk|flow|file CONNECTIONS SIZE DEPTH WARM SECONDS [LISTENER]");
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons(atoi(argv[1]));
    if (clock_getcpuclockid(atoi(argv[2]), &server_clock))
        fail("no process %s", argv[2]);
    const char *names[] = {"lines", "churn", "bulk", "flow", "file"};
    while (strcmp(argv[3], names[kind]))
        if (++kind == sizeof names / sizeof *names)
            fail("no such kind: %s", argv[3]);
    int connections = atoi(argv[4]);
    prepare(atol(argv[5]), atol(argv[6]));
    struct connection *all = calloc(connections, sizeof *all);
    if (!all)
        fail("no memory");
    if (argc == 10)
        serve_upstream(atoi(argv[9]));

    int poller = new_poller();
    for (int i = 0; i < connections; i++) {
        all[i].poller = poller;
        dial(&all[i]);
        greet(&all[i]);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN | (kind == BULK ? EPOLLOUT : 0));
    }
    unseen = kind == FLOW || kind == FILES ? MSG_TRUNC : 0;
    for (int i = 0; i < connections; i++)
        send_batch(&all[i]);
    run(poller, server_clock, atof(argv[7]), atof(argv[8]));
    return 0;
}
