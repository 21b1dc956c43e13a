//! Probes and metrics over HTTP, on a thread of its own.
//!
//! The thread has a runtime for itself: a broker whose workers are busy, or whose disk hangs, still
//! answers `/livez` in time. What an answer contains is up to [`Health`], which must not block.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections served at a time; probes and a scraper need a handful.
const MAX_CONNECTIONS: usize = 64;

/// A client that has not sent its request by then is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Content type of the metrics text.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a process says about itself. The text of an error is the answer's body.
pub trait Health: Send + Sync + 'static {
    fn live(&self) -> Result<(), String>;
    fn ready(&self) -> Result<(), String>;
    fn started(&self) -> Result<(), String>;
    /// Metrics in OpenMetrics text.
    fn metrics(&self) -> String;
}

/// A running HTTP server; stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Where it listens, with the real port if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            // It ends at its next await; a panic in it was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Binds `address` and serves on a new thread until the result is dropped.
pub fn serve(address: SocketAddr, health: Arc<dyn Health>) -> io::Result<Server> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let thread = std::thread::Builder::new()
        .name("http".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                if let Err(error) = accept_loop(listener, health, stop).await {
                    tracing::error!(%error, "HTTP server failed");
                }
            });
        })?;
    Ok(Server {
        address,
        shutdown,
        thread: Some(thread),
    })
}

async fn accept_loop(
    listener: std::net::TcpListener,
    health: Arc<dyn Health>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let health = Arc::clone(&health);
                    connections.spawn(async move {
                        let service = service_fn(move |request| {
                            let answer = answer(&request, &*health);
                            async move { Ok::<_, Infallible>(answer) }
                        });
                        let served = hyper::server::conn::http1::Builder::new()
                            .timer(TokioTimer::new())
                            .header_read_timeout(HEADER_TIMEOUT)
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                        if let Err(error) = served {
                            tracing::debug!(%error, "HTTP connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
}

fn answer(request: &Request<Incoming>, health: &dyn Health) -> Response<Full<Bytes>> {
    let text = |status: StatusCode, text: String, kind: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    };
    const PLAIN: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, String::new(), PLAIN);
    }
    let verdict = match request.uri().path() {
        "/livez" => health.live(),
        "/readyz" => health.ready(),
        "/startupz" => health.started(),
        "/metrics" => return text(StatusCode::OK, health.metrics(), OPENMETRICS),
        _ => return text(StatusCode::NOT_FOUND, "not found\n".to_owned(), PLAIN),
    };
    match verdict {
        Ok(()) => text(StatusCode::OK, "ok\n".to_owned(), PLAIN),
        Err(reason) => text(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{reason}\n"),
            PLAIN,
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    struct Stub;

    impl Health for Stub {
        fn live(&self) -> Result<(), String> {
            Ok(())
        }
        fn ready(&self) -> Result<(), String> {
            Err("not registered yet".to_owned())
        }
        fn started(&self) -> Result<(), String> {
            Ok(())
        }
        fn metrics(&self) -> String {
            "# EOF\n".to_owned()
        }
    }

    #[test]
    fn probes_and_metrics_are_answered_and_the_thread_ends_with_its_handle() {
        let server = serve("127.0.0.1:0".parse().unwrap(), Arc::new(Stub)).unwrap();
        let get = |path: &str| {
            let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            )
            .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let status = answer.split(' ').nth(1).unwrap().to_owned();
            let body = answer.split("\r\n\r\n").nth(1).unwrap().to_owned();
            (status, body)
        };
        assert_eq!(get("/livez"), ("200".to_owned(), "ok\n".to_owned()));
        assert_eq!(
            get("/readyz"),
            ("503".to_owned(), "not registered yet\n".to_owned())
        );
        assert_eq!(get("/startupz").0, "200");
        assert_eq!(get("/metrics"), ("200".to_owned(), "# EOF\n".to_owned()));
        assert_eq!(get("/").0, "404");
        let address = server.address();
        drop(server);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}
