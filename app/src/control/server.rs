//! The answering side of the control socket: one thread that accepts, one for each connection.
//!
//! Only processes of the same person (or root) are heard, and only so many at a time; lines are bounded.

use std::io::{self, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant};

use super::protocol::{Event, MAX_TEXT, Pointer, Reply, Request, State, Stream, VERSION, read_line, write_line};
use super::{Screenshot, keys, runtime_folder, socket_name, socket_path};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 32;
/// How long a client may take to read an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a machine's end waits for those who listen to it, or wait for an answer.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How often progress is told.
const PROGRESS_PAUSE: Duration = Duration::from_millis(100);

/// The machine behind a socket.
pub trait Host: Send + Sync + 'static {
    /// Its id, its name.
    fn identity(&self) -> (String, String);
    /// How it is.
    fn state(&self) -> State;
    /// Does what a request without an answer asks: power, media, the window.
    ///
    /// # Errors
    /// Why not, a sentence.
    fn command(&self, request: Request) -> Result<(), String>;
    /// Does what takes time. `progress` hears how much is done of how much, and says whether to go on.
    ///
    /// # Errors
    /// Why it was not done, a sentence.
    fn work(&self, request: Request, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), String>;
    /// Its screen, no wider than `max_width`.
    ///
    /// # Errors
    /// Why there is none, a sentence.
    fn screenshot(&self, max_width: Option<u32>) -> Result<Screenshot, String>;
    /// Presses and releases keys; returns when it is done.
    fn keys(&self, changes: &[keys::Change]);
    /// Moves the pointer.
    fn pointer(&self, pointer: Pointer);
    /// Gives a stream to a client, from its history on. Returns at once.
    ///
    /// # Errors
    /// Why not, a sentence.
    fn attach(&self, stream: Stream, client: UnixStream) -> Result<(), String>;
    /// What happens from now on.
    fn listen(&self) -> Receiver<Event>;
}

/// A control socket that is open; dropping it removes it.
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    wake: UnixListener,
    /// Connections on which something is being said.
    speaking: Arc<AtomicUsize>,
}

impl Server {
    /// Opens the socket of the machine with this id and answers on it. The caller holds the machine's lock: a socket that
    /// is there already is a dead process's.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn start(id: &str, host: Arc<dyn Host>) -> io::Result<Server> {
        Server::start_in(&runtime_folder()?, id, host)
    }

    pub(super) fn start_in(folder: &std::path::Path, id: &str, host: Arc<dyn Host>) -> io::Result<Server> {
        let name = socket_name(id);
        let path = folder.join(&name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (short, _open) = socket_path(folder, &name)?;
        let listener = UnixListener::bind(short)?;
        let wake = listener.try_clone()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopping, speaking) = (stop.clone(), Arc::new(AtomicUsize::new(0)));
        let count = speaking.clone();
        thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &host, &stopping, &count))?;
        Ok(Server { path, stop, wake, speaking })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = std::fs::remove_file(&self.path);
        // Ends the accept; connections end with their clients or the process.
        let _ = rustix::net::shutdown(&self.wake, rustix::net::Shutdown::Both);
        // The process may end with this: who listens to a machine that has stopped hears the last of it, and who had it
        // stopped that it was done.
        let until = Instant::now() + LAST_WORDS;
        while self.speaking.load(Ordering::Acquire) > 0 && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn accept(listener: &UnixListener, host: &Arc<dyn Host>, stop: &AtomicBool, speaking: &Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    while !stop.load(Ordering::Acquire) {
        let Ok((stream, _)) = listener.accept() else {
            if stop.load(Ordering::Acquire) {
                return;
            }
            // Out of descriptors, most likely: there will be some again.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if !permitted(&stream) || connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
            if permitted(&stream) {
                connections.fetch_sub(1, Ordering::AcqRel);
            }
            continue;
        }
        let (host, count, speaking) = (host.clone(), connections.clone(), speaking.clone());
        let served = thread::Builder::new().name("client".into()).spawn(move || {
            // A client that goes away in the middle is no news.
            let _ = serve(stream, &*host, &speaking);
            count.fetch_sub(1, Ordering::AcqRel);
        });
        if served.is_err() {
            connections.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Whether the other side is this person, or root.
fn permitted(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

/// Something is said on a connection as long as this lives.
struct Speaking<'a>(&'a AtomicUsize);

impl<'a> Speaking<'a> {
    fn new(count: &'a AtomicUsize) -> Speaking<'a> {
        count.fetch_add(1, Ordering::AcqRel);
        Speaking(count)
    }
}

impl Drop for Speaking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn serve(stream: UnixStream, host: &dyn Host, speaking: &AtomicUsize) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_PATIENCE))?;
    let mut reader = BufReader::new(stream);
    match read_line(&mut reader)? {
        Some(Request::Hello { version }) => {
            let (id, name) = host.identity();
            let hello = Reply::Hello { version: VERSION, id, name, pid: std::process::id() };
            write_line(reader.get_mut(), &hello)?;
            if version != VERSION {
                return Ok(());
            }
        }
        _ => return write_line(reader.get_mut(), &refused("say hello first")),
    }
    loop {
        let request = match read_line(&mut reader) {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                // The rest of the line cannot be told from the next.
                return write_line(reader.get_mut(), &refused(&format!("this is no request: {error}")));
            }
            Err(error) => return Err(error),
        };
        let spoken = Speaking::new(speaking);
        let reply = match request {
            Request::Attach { stream } => {
                let client = reader.get_ref().try_clone()?;
                write_line(reader.get_mut(), &Reply::Attached)?;
                drop(spoken);
                return host.attach(stream, client).map_err(io::Error::other);
            }
            Request::Listen => return listen(reader, host),
            work @ (Request::Suspend
            | Request::TakeSnapshot { .. }
            | Request::DeleteSnapshot { .. }
            | Request::Fork { .. }
            | Request::KeepOnTimeline) => {
                let mut report = Report { stream: reader.get_ref().try_clone()?, last: None };
                match host.work(work, &mut |done, total| report.tell(done, total)) {
                    Ok(()) => Reply::Done,
                    Err(message) => Reply::Refused { message },
                }
            }
            // Work that was done before it could be given up.
            Request::Cancel => continue,
            Request::Screenshot { max_width } => match host.screenshot(max_width) {
                Ok(Screenshot { width, height, png }) => {
                    write_line(reader.get_mut(), &Reply::Screenshot { width, height, bytes: png.len() })?;
                    reader.get_mut().write_all(&png)?;
                    continue;
                }
                Err(message) => Reply::Refused { message },
            },
            other => answer(other, host),
        };
        write_line(reader.get_mut(), &reply)?;
    }
}

/// How far work is, told to its client.
struct Report {
    stream: UnixStream,
    last: Option<Instant>,
}

impl Report {
    /// Tells it, some times a second. Says whether to go on: the client is still there, and has not given it up.
    fn tell(&mut self, done: u64, total: u64) -> bool {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < PROGRESS_PAUSE) {
            return true;
        }
        self.last = Some(now);
        write_line(&mut self.stream, &Reply::Progress { done, total }).is_ok() && !self.has_request()
    }

    /// The client has said something: while work goes on that can only be [`Request::Cancel`]. It stays to be read.
    fn has_request(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let peek = recv(&self.stream, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        // One that only says no more (0) waits for its answer.
        matches!(peek, Ok((count, _)) if count > 0)
    }
}

fn refused(message: &str) -> Reply {
    Reply::Refused { message: message.into() }
}

/// Answers a request whose answer is one line.
fn answer(request: Request, host: &dyn Host) -> Reply {
    let done = |result: Result<(), String>| match result {
        Ok(()) => Reply::Done,
        Err(message) => Reply::Refused { message },
    };
    match request {
        Request::State => Reply::State(host.state()),
        Request::Type { text } if text.chars().count() > MAX_TEXT => {
            refused(&format!("at most {MAX_TEXT} characters are typed at once"))
        }
        Request::Type { text } => done(keys::typing(&text).map(|changes| host.keys(&changes))),
        Request::Press { keys } => done(keys::chord(&keys).map(|changes| host.keys(&changes))),
        Request::Pointer(pointer) => {
            host.pointer(pointer);
            Reply::Done
        }
        other => done(host.command(other)),
    }
}

/// Tells events until the machine stops or the client goes.
fn listen(mut reader: BufReader<UnixStream>, host: &dyn Host) -> io::Result<()> {
    let events = host.listen();
    write_line(reader.get_mut(), &Reply::Listening)?;
    for event in events {
        write_line(reader.get_mut(), &event)?;
    }
    Ok(())
}
