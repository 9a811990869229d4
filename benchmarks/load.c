/* Load on a server at 127.0.0.1, from one thread: what is sent next waits for what came back.
 *
 *     load PORT PID KIND CONNECTIONS SIZE DEPTH WARM SECONDS [LISTENER]
 *
 *   lines  each connection sends DEPTH lines of SIZE bytes at once and, when all of them are back, again
 *   churn  each connection sends a line, waits for it, closes, and a new one takes its place
 *   bulk   each connection sends SIZE bytes whenever it can, and reads whatever comes back
 *   flow   each connection keeps DEPTH times SIZE bytes under way: as much as comes back it sends anew
 *   file   each connection asks for the file "data", SIZE bytes, all of them 'x', and, when it has come, again
 *   broadcast
 *          one connection sends DEPTH lines of SIZE bytes, which the server sends to all, and, when all have them, again
 *
 * With LISTENER, an inherited descriptor, the server is a forwarder: a second thread accepts the connections it makes
 * there, and echoes.
 *
 * All connections are served once before the clock starts; after WARM seconds what comes back is counted for SECONDS.
 * Prints the bytes counted, the instants between which they were (CLOCK_MONOTONIC), and the CPU seconds that meanwhile
 * the server, process PID, and the load itself used, both its threads. Any error ends it, with status 1.
 *
 * Compiled with -DTLS it does the same under TLS 1.3, with OpenSSL's defaults, and prints the cipher as well. No session
 * is ever resumed, and no certificate looked at. There "churn" closes as a client should, with a farewell (close_notify).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum kind { LINES, CHURN, BULK, FLOW, FILES, BROADCAST };

struct connection {
    int fd;
    int poller;
    unsigned awaited; /* the epoll events it is registered for */
    size_t unsent;    /* of the batch */
    size_t received;  /* of the answer */
#ifdef TLS
    SSL *tls;
#endif
};

static enum kind kind;
static struct sockaddr_in server;
static char *batch, *answer;
static size_t batch_size, answer_size;
static int unseen; /* MSG_TRUNC, where the bytes are thrown away uncopied, so that the load is not the slower side */
static unsigned long long counted;
static int connections, served; /* of them, by the broadcast that is under way */
static struct connection *speaker;
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

/* ---- what carries the bytes: the socket, or TLS over it

 * begin()      after connect()
 * give()       how many bytes it took; 0 where there is no room
 * receive()    as recv(), into the input
 * has_more()   whether there is more to receive that epoll does not know of
 * shaking()    whether it waits for the server before it takes anything
 * end()        closes
 */

static const char *cipher = "";

#ifdef TLS

static SSL_CTX *context;

static void prepare_transport(void)
{
    signal(SIGPIPE, SIG_IGN); /* OpenSSL calls write() */
    context = SSL_CTX_new(TLS_client_method());
    if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION))
        fail("OpenSSL has no TLS 1.3");
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_read_ahead(context, 1); /* one call for many records, and not two for each */
    SSL_CTX_set_default_read_buffer_len(context, 1 << 16);
}

static void begin(struct connection *c)
{
    int on = 1;
    if (ioctl(c->fd, FIONBIO, &on) < 0)
        fail("ioctl: %s", strerror(errno));
    c->tls = SSL_new(context);
    if (!c->tls || !SSL_set_fd(c->tls, c->fd))
        fail("no memory");
    SSL_set_connect_state(c->tls);
}

/* What comes of a call that returned n: as it would be of send() or recv(). */
static ssize_t outcome(struct connection *c, int n)
{
    if (n > 0)
        return n;
    switch (SSL_get_error(c->tls, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SYSCALL:
        return -1;
    }
    fail("TLS: %s", ERR_reason_error_string(ERR_get_error()));
    return -1;
}

static size_t give(struct connection *c, const char *bytes, size_t size)
{
    ssize_t n = outcome(c, SSL_write(c->tls, bytes, size));
    if (n < 0 && errno != EAGAIN)
        fail("write: %s", strerror(errno));
    return n < 0 ? 0 : n;
}

static ssize_t receive(struct connection *c)
{
    return outcome(c, SSL_read(c->tls, input, sizeof input));
}

static int has_more(struct connection *c)
{
    return SSL_has_pending(c->tls);
}

static int shaking(struct connection *c)
{
    return !SSL_is_init_finished(c->tls);
}

static void note_cipher(struct connection *c)
{
    cipher = SSL_get_cipher_name(c->tls);
    if (SSL_session_reused(c->tls))
        fail("a session was resumed");
}

static void end(struct connection *c)
{
    SSL_shutdown(c->tls);
    SSL_free(c->tls);
    close(c->fd);
}

#else

static void prepare_transport(void)
{
}

static void begin(struct connection *c)
{
    (void)c;
}

static size_t give(struct connection *c, const char *bytes, size_t size)
{
    return send_some(c, bytes, size);
}

static ssize_t receive(struct connection *c)
{
    return recv(c->fd, input, sizeof input, MSG_DONTWAIT | unseen);
}

static int has_more(struct connection *c)
{
    (void)c;
    return 0;
}

static int shaking(struct connection *c)
{
    (void)c;
    return 0;
}

static void note_cipher(struct connection *c)
{
    (void)c;
}

/* With a reset: it leaves nothing behind, while TIME_WAIT would run the machine out of ports. */
static void end(struct connection *c)
{
    struct linger reset = {.l_onoff = 1};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(c->fd);
}

#endif

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
    begin(c);
}

static void check(struct connection *c, size_t size)
{
    if (size > answer_size - c->received || (!unseen && memcmp(input, answer + c->received, size)))
        fail("the server sent what it was not asked for");
    c->received += size;
}

/* Wait for an answer, sending meanwhile what is unsent. */
static void await_answer(struct connection *c)
{
    struct pollfd state = {.fd = c->fd};
    while (c->received < answer_size) {
        if (c->unsent)
            c->unsent -= give(c, batch + batch_size - c->unsent, c->unsent);
        state.events = POLLIN | (c->unsent && !shaking(c) ? POLLOUT : 0);
        if (!has_more(c) && poll(&state, 1, 10000) <= 0)
            fail("the server was silent for 10 s");
        ssize_t n = receive(c);
        if (n > 0)
            check(c, n);
        else if (!n || errno != EAGAIN)
            fail("the server closed a connection");
    }
    c->received = 0;
    note_cipher(c);
}

/* Send one batch and wait for the answer: the server has accepted this connection and its handler runs. */
static void greet(struct connection *c)
{
    send_at_once(c);
    c->unsent = batch_size;
    await_answer(c);
}

/* The last to come is the one who speaks: when the server hears it, it has accepted all. */
static void greet_everybody(struct connection *all)
{
    speaker = &all[connections - 1];
    greet(speaker);
    for (struct connection *c = all; c < speaker; c++)
        await_answer(c);
}

static void push(struct connection *c)
{
    size_t n = 1;
    for (; c->unsent && n; c->unsent -= n)
        n = give(c, batch + batch_size - c->unsent, c->unsent);
    watch(c, EPOLL_CTL_MOD, EPOLLIN | ((kind == BULK || c->unsent) && !shaking(c) ? EPOLLOUT : 0));
}

static void send_batch(struct connection *c)
{
    c->unsent = batch_size;
    c->received = 0;
    push(c);
}

static void renew(struct connection *c)
{
    end(c);
    dial(c);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void on_bytes(struct connection *c, size_t n)
{
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
    if (kind == BROADCAST) {
        c->received = 0;
        if (++served < connections)
            return;
        served = 0;
        c = speaker;
    }
    send_batch(c);
}

static void on_input(struct connection *c)
{
    if (shaking(c))
        return push(c);
    do {
        ssize_t n = receive(c);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            fail("the server closed a connection: %s", n ? strerror(errno) : "end of file");
        on_bytes(c, n);
    } while (has_more(c));
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
    printf("%llu %.9f %.9f %.9f %.9f %s\n", counted, start, now, seconds_of(server_clock) - server_start,
           seconds_of(CLOCK_PROCESS_CPUTIME_ID) - own_start, cipher);
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
        fail("usage: load PORT PID lines|churn|bulk|flow|file|broadcast CONNECTIONS SIZE DEPTH WARM SECONDS [LISTENER]");
    server.sin_family = AF_INET;
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    server.sin_port = htons(atoi(argv[1]));
    if (clock_getcpuclockid(atoi(argv[2]), &server_clock))
        fail("no process %s", argv[2]);
    const char *names[] = {"lines", "churn", "bulk", "flow", "file", "broadcast"};
    while (strcmp(argv[3], names[kind]))
        if (++kind == sizeof names / sizeof *names)
            fail("no such kind: %s", argv[3]);
    connections = atoi(argv[4]);
    prepare(atol(argv[5]), atol(argv[6]));
    struct connection *all = calloc(connections, sizeof *all);
    if (!all)
        fail("no memory");
    if (argc == 10)
        serve_upstream(atoi(argv[9]));
    prepare_transport();

    int poller = new_poller();
    for (int i = 0; i < connections; i++) {
        all[i].poller = poller;
        dial(&all[i]);
        if (kind != BROADCAST)
            greet(&all[i]);
        watch(&all[i], EPOLL_CTL_ADD, EPOLLIN | (kind == BULK ? EPOLLOUT : 0));
    }
    struct connection *first = all;
    if (kind == BROADCAST) {
        greet_everybody(all);
        first = speaker;
    }
    unseen = kind == FLOW || kind == FILES ? MSG_TRUNC : 0;
    for (struct connection *c = first; c < all + connections; c++)
        send_batch(c);
    run(poller, server_clock, atof(argv[7]), atof(argv[8]));
    return 0;
}
