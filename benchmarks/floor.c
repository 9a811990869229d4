/* The floor: an echo server in C on epoll, with as little as possible around the system calls. What a server in Python
 * takes beyond it is not the kernel's.
 *
 *   floor CORE [CERTIFICATE KEY | broadcast]
 *
 * It sends back what it receives, without a look for lines; with "broadcast" it sends it to all clients, in a bare loop
 * of sends. It prints the port it serves, and ends with its standard input. With -DTLS it speaks TLS.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum { CHUNK = 65536, EVENTS = 256, BACKLOG = 4096, MOST = 65536 };

struct client {
    int socket;
    char *unsent; /* what the kernel had no room for; nothing is received meanwhile */
    size_t begin, end;
    int place; /* among the clients of a broadcast */
#ifdef TLS
    SSL *tls;
#endif
};

static int epoll, broadcasts, members;
static struct client *all[MOST];
static char chunk[CHUNK];
#ifdef TLS
static SSL_CTX *context;
#endif

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(struct client *client, int how, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(epoll, how, client->socket, &event)) fail("epoll_ctl");
}

static void leave(struct client *client) {
#ifdef TLS
    SSL_shutdown(client->tls);
    SSL_free(client->tls);
    ERR_clear_error();
#endif
    if (broadcasts) {
        all[client->place] = all[--members];
        all[client->place]->place = client->place;
    }
    close(client->socket);
    free(client->unsent);
    free(client);
}

/* As recv and send: -1 with EAGAIN if it has to wait, 0 at the end. */
static ssize_t receive(struct client *client) {
#ifdef TLS
    int count = SSL_read(client->tls, chunk, CHUNK);
    if (count > 0) return count;
    int error = SSL_get_error(client->tls, count);
    ERR_clear_error();
    errno = EAGAIN;
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? -1 : 0;
#else
    return recv(client->socket, chunk, CHUNK, 0);
#endif
}

static ssize_t transmit(struct client *client, const char *data, size_t size) {
#ifdef TLS
    int count = SSL_write(client->tls, data, (int)size);
    if (count > 0) return count;
    int error = SSL_get_error(client->tls, count);
    ERR_clear_error();
    errno = error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ ? EAGAIN : EPIPE;
    return -1;
#else
    return send(client->socket, data, size, MSG_NOSIGNAL);
#endif
}

/* Send the rest; 0 if some is left, -1 if the client is gone. */
static int flush(struct client *client) {
    while (client->begin < client->end) {
        ssize_t sent = transmit(client, client->unsent + client->begin, client->end - client->begin);
        if (sent < 0) return errno == EAGAIN ? 0 : -1;
        client->begin += (size_t)sent;
    }
    return 1;
}

static int keep(struct client *client, const char *data, size_t size) {
    if (!client->unsent && !(client->unsent = malloc(CHUNK))) fail("malloc");
    memcpy(client->unsent, data, size);
    client->begin = 0;
    client->end = size;
    watch(client, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    return 0;
}

/* Send to all what has come. The one who speaks next waits until all have it, so that there is always room for it. */
static int spread(struct client *client) {
    ssize_t count = recv(client->socket, chunk, CHUNK, 0);
    if (count <= 0) return count < 0 && errno == EAGAIN ? 0 : -1;
    for (int i = 0; i < members; i++)
        if (send(all[i]->socket, chunk, (size_t)count, MSG_NOSIGNAL) != count && errno != EPIPE && errno != ECONNRESET)
            fail("send");
    return 0;
}

/* Return -1 if the client is gone. */
static int serve(struct client *client) {
    if (broadcasts) return spread(client);
    if (client->begin < client->end) {
        int done = flush(client);
        if (done <= 0) return done;
        watch(client, EPOLL_CTL_MOD, EPOLLIN);
    }
    for (;;) {
        ssize_t count = receive(client);
        if (count <= 0) return count < 0 && errno == EAGAIN ? 0 : -1;
        ssize_t sent = transmit(client, chunk, (size_t)count);
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent < count) return keep(client, chunk + (sent < 0 ? 0 : sent), (size_t)(count - (sent < 0 ? 0 : sent)));
#ifdef TLS
        if (!SSL_has_pending(client->tls)) return 0;
#else
        if (count < CHUNK) return 0;
#endif
    }
}

static void accept_all(int listener) {
    for (int most = 16; most; most--) {
        int one = 1, number = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (number < 0) return;
        setsockopt(number, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct client *client = calloc(1, sizeof *client);
        if (!client) fail("calloc");
        client->socket = number;
#ifdef TLS
        client->tls = SSL_new(context);
        SSL_set_fd(client->tls, number);
        SSL_set_accept_state(client->tls);
#endif
        if (broadcasts) {
            if (members == MOST) fail("too many clients");
            client->place = members;
            all[members++] = client;
        }
        watch(client, EPOLL_CTL_ADD, EPOLLIN);
    }
}

int main(int count, char **words) {
    cpu_set_t cores;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    struct epoll_event events[EVENTS];
    struct client own = {0}, input = {0};

    CPU_ZERO(&cores);
    CPU_SET(atoi(words[1]), &cores);
    if (sched_setaffinity(0, sizeof cores, &cores)) fail("sched_setaffinity");
#ifdef TLS
    context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    if (count < 4 || SSL_CTX_use_certificate_chain_file(context, words[2]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, words[3], SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "no certificate\n");
        return 1;
    }
#endif
    broadcasts = count == 3 && !strcmp(words[2], "broadcast");
    own.socket = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(own.socket, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    if (bind(own.socket, (struct sockaddr *)&address, sizeof address) || listen(own.socket, BACKLOG)) fail("listen");
    getsockname(own.socket, (struct sockaddr *)&address, &size);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    watch(&own, EPOLL_CTL_ADD, EPOLLIN);
    watch(&input, EPOLL_CTL_ADD, EPOLLIN);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct client *client = events[i].data.ptr;
            if (client == &input) return 0;
            if (client == &own)
                accept_all(own.socket);
            else if (serve(client) < 0)
                leave(client);
        }
    }
}
