//! Logs: one line an event on standard error, as text or JSON.
//!
//! Standard error may be a pipe that its reader does not empty. No thread that logs waits for it: lines go through a
//! bounded queue to a thread of their own, and a line that finds the queue full is dropped and counted.

use std::{
    fmt,
    io::{self, Write},
    panic,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use clap::ValueEnum;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    fmt::{
        MakeWriter,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::traces;

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// What is logged unless `RUST_LOG` says otherwise. The client library reports each retry of a watch as a warning of its
/// own, beside the one line in which we say that it is down.
const DEFAULT_FILTER: &str = "info,kube_client=error,kube_runtime=error,hyper=warn,tower=warn";

/// Lines that wait to be written. A replica that takes over a thousand kinds writes four lines for each of them within
/// seconds; at some 250 bytes a line they take 1 MiB.
const QUEUED: usize = 4096;

/// How long the end of the process waits for lines to be written. A reader that is alive takes all of them in less.
const LAST_LINES: Duration = Duration::from_secs(1);
/// The same for a process that a loss ends: it must be gone at once.
const LAST_LINES_OF_A_LOSS: Duration = Duration::from_millis(20);
/// Between two looks whether they are.
const LOOK: Duration = Duration::from_millis(2);

/// Sends the lines of this process to standard error from now on. The last lines are written when the value is dropped:
/// keep it to the end. `spans` gets the spans as well, whatever is logged.
pub(super) fn install(format: Format, spans: Option<traces::Layer>) -> Lines {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let (queue, lines) = Lines::to(io::stderr(), format, QUEUED, LAST_LINES);
    let written = tracing_subscriber::fmt::layer().with_writer(queue);
    let written = match format {
        Format::Text => {
            written.with_target(false).with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter(filter).boxed()
        }
        Format::Json => {
            let json = written.json().flatten_event(true).with_current_span(false).with_span_list(false);
            json.with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(spans).with(written).init();
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("a panic without a message");
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!(place, %backtrace, "panic: {message}");
        } else {
            tracing::error!(place, "panic: {message}");
        }
    }));
    lines
}

/// Writes a command's last words to standard error, for at most a second.
pub(super) fn last_words(words: &impl fmt::Display) {
    let (mut queue, lines) = Lines::to(io::stderr(), Format::Text, 1, LAST_LINES);
    // One line of the queue, whatever its length; a queue does not fail.
    let _ = queue.write_all(format!("{words}\n").as_bytes());
    drop(lines);
}

/// What has become of the lines of a queue.
#[derive(Default)]
struct Tally {
    /// Lines that were logged, dropped ones among them.
    logged: AtomicUsize,
    /// Lines that the output took or refused.
    written: AtomicUsize,
    dropped: OnceLock<ErrorCounter>,
    /// Dropped lines that a line has told of.
    told: AtomicUsize,
}

impl Tally {
    fn dropped(&self) -> usize {
        self.dropped.get().map_or(0, ErrorCounter::dropped_lines)
    }

    /// All that was logged is written, or a line says that it is not.
    fn is_done(&self) -> bool {
        let dropped = self.dropped();
        self.told.load(Ordering::SeqCst) == dropped
            && self.written.load(Ordering::SeqCst) + dropped >= self.logged.load(Ordering::SeqCst)
    }
}

/// The writing end of the queue. Clones write to the same queue, and never wait.
#[derive(Clone)]
struct Queue {
    lines: NonBlocking,
    tally: Arc<Tally>,
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.tally.logged.fetch_add(1, Ordering::SeqCst);
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The reading end: writes what was queued, and a line about what was dropped.
struct Output<W> {
    to: W,
    format: Format,
    tally: Arc<Tally>,
    /// Lines since the last one about dropped lines, and after how many the next is due.
    since: usize,
    every: usize,
}

impl<W: Write> Output<W> {
    fn tell(&mut self) {
        let dropped = self.tally.dropped();
        let lines = dropped - self.tally.told.load(Ordering::SeqCst);
        self.since = 0;
        if lines > 0 {
            // An output that refuses this line refuses all, and there is nowhere else to say so.
            let _ = self.to.write_all(lost(self.format, lines).as_bytes());
            self.tally.told.store(dropped, Ordering::SeqCst);
        }
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        // A queue that never empties has lines dropped all the time.
        if self.since >= self.every {
            self.tell();
        }
        self.since += 1;
        let outcome = self.to.write_all(line);
        self.tally.written.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    /// Called when the queue is empty.
    fn flush(&mut self) -> io::Result<()> {
        self.tell();
        self.to.flush()
    }
}

/// The line about lines that were dropped.
fn lost(format: Format, lines: usize) -> String {
    const WHY: &str = "log lines were dropped: standard error did not take them in time";
    let mut time = String::new();
    // Writing to a String does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    match format {
        Format::Text => format!("{time}  WARN {WHY} lines={lines}\n"),
        Format::Json => {
            let line = serde_json::json!({"timestamp": time, "level": "WARN", "message": WHY, "lines": lines});
            format!("{line}\n")
        }
    }
}

/// The lines of this process. At its end this value waits until all are written, for as long as its patience lasts.
pub(super) struct Lines {
    tally: Arc<Tally>,
    patience: Duration,
    worker: Option<WorkerGuard>,
}

impl Lines {
    /// A queue of this many lines, and the thread that writes them.
    fn to(output: impl Write + Send + 'static, format: Format, queued: usize, patience: Duration) -> (Queue, Self) {
        let tally = Arc::<Tally>::default();
        let output = Output { to: output, format, tally: Arc::clone(&tally), since: 0, every: queued };
        let (lines, worker) =
            NonBlockingBuilder::default().lossy(true).buffered_lines_limit(queued).thread_name("logs").finish(output);
        // Nothing was logged before, so it is not set yet.
        let _ = tally.dropped.set(lines.error_counter());
        (Queue { lines, tally: Arc::clone(&tally) }, Self { tally, patience, worker: Some(worker) })
    }

    /// Waits until all are written, but hardly.
    pub(super) fn end_at_once(mut self) {
        self.patience = LAST_LINES_OF_A_LOSS;
    }

    /// Reads how many lines were dropped so far.
    pub(super) fn dropped(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let tally = Arc::clone(&self.tally);
        move || tally.dropped() as u64
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // The guard's own end prints to standard output when the queue is full, and that pipe may be full as well.
        std::mem::forget(self.worker.take());
        let mut left = self.patience;
        while !self.tally.is_done() && !left.is_zero() {
            thread::sleep(LOOK);
            left = left.saturating_sub(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// An output that takes nothing while it is shut.
    #[derive(Clone, Default)]
    struct Pipe(Arc<(Mutex<(bool, String)>, Condvar)>);

    impl Pipe {
        fn open(&self) {
            self.0.0.lock().unwrap().0 = true;
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            self.0.0.lock().unwrap().1.clone()
        }
    }

    impl Write for Pipe {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.1.wait_while(self.0.0.lock().unwrap(), |(open, _)| !*open).unwrap();
            inner.1.push_str(std::str::from_utf8(line).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn log(queue: &Queue, lines: usize) {
        let subscriber = tracing_subscriber::fmt().without_time().with_writer(queue.clone()).finish();
        tracing::subscriber::with_default(subscriber, || (0..lines).for_each(|line| tracing::info!("line {line}")));
    }

    #[test]
    fn an_output_that_takes_nothing_delays_no_line_and_no_end() {
        let pipe = Pipe::default();
        let (queue, lines) = Lines::to(pipe.clone(), Format::Text, 100, LOOK);
        log(&queue, 100_000);
        let dropped = lines.dropped();
        // The writer's thread may have one in its hand.
        assert!((99_899..=99_900).contains(&dropped()), "{}", dropped());
        drop(lines);
        assert_eq!(pipe.text(), "");
    }

    #[test]
    fn an_output_that_takes_lines_again_gets_what_was_queued_and_is_told_of_the_rest() {
        for (format, before) in [(Format::Text, " lines="), (Format::Json, "\"lines\":")] {
            let pipe = Pipe::default();
            let (queue, lines) = Lines::to(pipe.clone(), format, 10, LAST_LINES);
            log(&queue, 1000);
            let dropped = lines.dropped()();
            pipe.open();
            drop(lines);
            let text = pipe.text();
            let (told, queued): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains("dropped"));
            assert_eq!(queued.len() as u64, 1000 - dropped, "{text}");
            let number = |line: &str| -> u64 {
                let number = line.rsplit_once(before).unwrap().1;
                number.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
            };
            assert_eq!(told.into_iter().map(number).sum::<u64>(), dropped, "{text}");
        }
    }

    #[test]
    fn the_end_waits_for_lines_that_are_taken() {
        let pipe = Pipe::default();
        pipe.open();
        let (queue, lines) = Lines::to(pipe.clone(), Format::Text, 1000, LAST_LINES);
        log(&queue, 1000);
        drop(lines);
        assert_eq!(pipe.text().lines().count(), 1000);
        assert!(pipe.text().ends_with("line 999\n"), "{}", pipe.text());
    }
}
