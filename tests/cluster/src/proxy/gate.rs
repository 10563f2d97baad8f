//! What stops the bytes of a connection.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::{Sleep, sleep},
};

/// By how much the end of a connection may come after its last byte: longer than it takes to begin with what came.
const LINGER: Duration = Duration::from_millis(500);

/// Which connections are silent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shut {
    /// All of them.
    pub(super) all: bool,
    /// Those with a lower number than this.
    pub(super) below: u64,
}

/// A stream that moves no byte while it is shut.
pub(super) struct Gate {
    stream: TcpStream,
    number: u64,
    shut: watch::Receiver<Shut>,
    waiting: Option<Opened>,
    waiting_to_write: Option<Opened>,
    /// The end of the connection is seen late.
    lingers: bool,
    ending: Option<Pin<Box<Sleep>>>,
}

type Opened = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl Gate {
    pub(super) fn new(stream: TcpStream, number: u64, shut: watch::Receiver<Shut>) -> Self {
        Self { stream, number, shut, waiting: None, waiting_to_write: None, lingers: false, ending: None }
    }

    /// Its end is seen a moment after its last byte, as when the network loses the segment that ends it.
    pub(super) fn lingering(self) -> Self {
        Self { lingers: true, ..self }
    }

    fn poll_open(
        number: u64,
        shut: &watch::Receiver<Shut>,
        waiting: &mut Option<Opened>,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let is_open = move |shut: &Shut| !shut.all && number >= shut.below;
        if is_open(&shut.borrow()) {
            *waiting = None;
            return Poll::Ready(());
        }
        let opened = waiting.get_or_insert_with(|| {
            let mut shut = shut.clone();
            Box::pin(async move {
                // The proxy is gone when this fails, and the connection with it.
                let _ = shut.wait_for(is_open).await;
            })
        });
        ready!(opened.as_mut().poll(context));
        *waiting = None;
        Poll::Ready(())
    }
}

impl AsyncRead for Gate {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        ready!(Self::poll_open(gate.number, &gate.shut, &mut gate.waiting, context));
        let before = buffer.filled().len();
        if gate.ending.is_none() {
            ready!(Pin::new(&mut gate.stream).poll_read(context, buffer))?;
            if !gate.lingers || buffer.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
        ready!(gate.ending.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(context));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Gate {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let gate = self.get_mut();
        ready!(Self::poll_open(gate.number, &gate.shut, &mut gate.waiting_to_write, context));
        Pin::new(&mut gate.stream).poll_write(context, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        Pin::new(&mut gate.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        ready!(Self::poll_open(gate.number, &gate.shut, &mut gate.waiting_to_write, context));
        Pin::new(&mut gate.stream).poll_shutdown(context)
    }
}
