//! The asking side of the control socket.

use std::io::{self, BufReader, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::protocol::{Event, MAX_PNG, Pointer, Reply, Request, State, Stream, VERSION, read_line, write_line};
use super::{runtime_folder, socket_name, socket_path};

/// How long a machine may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long typing may take: a long text goes key by key, and no faster than the guest takes them.
const TYPING_PATIENCE: Duration = Duration::from_secs(1800);

/// Why a machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens: it does not run.
    #[error("it is not running")]
    NotRunning,
    /// It speaks another version of the protocol.
    #[error(
        "it was started by another version of Orangery (protocol {theirs}, this one speaks {VERSION}); shut it down and start it again"
    )]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// It will not, and says why.
    #[error("{0}")]
    Refused(String),
    /// It gave up what it was doing, because it was asked to.
    #[error("it was cancelled")]
    Cancelled,
    /// It did not answer in time.
    #[error("its process does not answer; 'orangery stop --force' ends it")]
    Silent,
    /// It answered with something else than was asked for.
    #[error("its process answered something unexpected")]
    Confused,
    /// The connection failed.
    #[error("the connection to its process failed")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ControlError {
    fn from(error: io::Error) -> ControlError {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ControlError::Silent,
            _ => ControlError::Io(error),
        }
    }
}

/// A connection to the process that runs a machine. Every method waits for its answer, ten seconds at most
/// (typing: as long as it takes).
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    patience: Duration,
    id: String,
    name: String,
    pid: u32,
}

/// A picture of a machine's screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screenshot {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The PNG file.
    pub png: Vec<u8>,
}

impl Client {
    /// Connects to the machine with this id.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`], or the process does not answer as it should.
    pub fn connect(id: &str) -> Result<Client, ControlError> {
        Client::connect_in(&runtime_folder()?, id, PATIENCE)
    }

    /// The same with less patience: every answer is waited for this long at most.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect_within(id: &str, patience: Duration) -> Result<Client, ControlError> {
        Client::connect_in(&runtime_folder()?, id, patience)
    }

    /// Connects to the machine with this id, its socket in `folder`.
    pub(super) fn connect_in(folder: &Path, id: &str, patience: Duration) -> Result<Client, ControlError> {
        let (path, _open) = socket_path(folder, &socket_name(id))?;
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                return Err(ControlError::NotRunning);
            }
            Err(error) => return Err(error.into()),
        };
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let reader = BufReader::new(stream);
        let mut client = Client { reader, patience, id: String::new(), name: String::new(), pid: 0 };
        match client.ask(&Request::Hello { version: VERSION })? {
            Reply::Hello { version, .. } if version != VERSION => Err(ControlError::Version { theirs: version }),
            Reply::Hello { version: _, id, name, pid } => Ok(Client { id, name, pid, ..client }),
            _ => Err(ControlError::Confused),
        }
    }

    /// The machine's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The machine's name, as it was when the machine started.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process that runs the machine.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks one thing. For requests that turn the connection into something else there are methods.
    ///
    /// # Errors
    /// The machine refused, or the connection failed.
    fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        write_line(self.reader.get_mut(), request)?;
        match read_line(&mut self.reader)? {
            Some(Reply::Refused { message }) => Err(ControlError::Refused(message)),
            Some(reply) => Ok(reply),
            // It stopped before it could answer.
            None => Err(ControlError::NotRunning),
        }
    }

    /// Asks for something to be done: [`Request::ShutDown`], [`Request::Pause`] and the like.
    ///
    /// # Errors
    /// The machine refused, or the connection failed.
    pub fn command(&mut self, request: &Request) -> Result<(), ControlError> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            _ => Err(ControlError::Confused),
        }
    }

    /// Asks for work that takes time: [`Request::Suspend`]. `progress` hears how much is done of how much; a `false` gives the
    /// work up. Returns when the machine has done it or has given it up.
    ///
    /// # Errors
    /// [`ControlError::Cancelled`] when it was given up; the machine refused, or the connection failed.
    pub fn work(mut self, request: &Request, mut progress: impl FnMut(u64, u64) -> bool) -> Result<(), ControlError> {
        // A disk may take its time; that the process ends is seen all the same.
        self.reader.get_ref().set_read_timeout(None)?;
        write_line(self.reader.get_mut(), request)?;
        let mut cancelled = false;
        loop {
            match read_line(&mut self.reader)? {
                Some(Reply::Progress { done, total }) => {
                    if !progress(done, total) && !cancelled {
                        cancelled = true;
                        write_line(self.reader.get_mut(), &Request::Cancel)?;
                    }
                }
                // Perhaps in spite of the wish to give it up, which came too late.
                Some(Reply::Done) => return Ok(()),
                Some(Reply::Refused { .. }) if cancelled => return Err(ControlError::Cancelled),
                Some(Reply::Refused { message }) => return Err(ControlError::Refused(message)),
                Some(_) => return Err(ControlError::Confused),
                None => return Err(ControlError::NotRunning),
            }
        }
    }

    /// How the machine is.
    ///
    /// # Errors
    /// The connection failed.
    pub fn state(&mut self) -> Result<State, ControlError> {
        match self.ask(&Request::State)? {
            Reply::State(state) => Ok(state),
            _ => Err(ControlError::Confused),
        }
    }

    /// Its screen as a PNG, no wider than `max_width`.
    ///
    /// # Errors
    /// The screen is off, or the connection failed.
    pub fn screenshot(&mut self, max_width: Option<u32>) -> Result<Screenshot, ControlError> {
        let Reply::Screenshot { width, height, bytes } = self.ask(&Request::Screenshot { max_width })? else {
            return Err(ControlError::Confused);
        };
        if bytes > MAX_PNG {
            return Err(ControlError::Confused);
        }
        let mut png = vec![0; bytes];
        self.reader.read_exact(&mut png)?;
        Ok(Screenshot { width, height, png })
    }

    /// Types a text on a US keyboard; returns when the last key is up.
    ///
    /// # Errors
    /// It has a character that no key makes, or the connection failed.
    pub fn type_text(&mut self, text: &str) -> Result<(), ControlError> {
        self.typing(&Request::Type { text: text.into() })
    }

    /// Presses keys together, like `ctrl-alt-delete`.
    ///
    /// # Errors
    /// There is no such key, or the connection failed.
    pub fn press(&mut self, keys: &str) -> Result<(), ControlError> {
        self.typing(&Request::Press { keys: keys.into() })
    }

    fn typing(&mut self, request: &Request) -> Result<(), ControlError> {
        self.reader.get_ref().set_read_timeout(Some(TYPING_PATIENCE))?;
        let typed = self.command(request);
        self.reader.get_ref().set_read_timeout(Some(self.patience))?;
        typed
    }

    /// Moves the pointer, turns its wheel, presses its buttons.
    ///
    /// # Errors
    /// The connection failed.
    pub fn pointer(&mut self, pointer: Pointer) -> Result<(), ControlError> {
        self.command(&Request::Pointer(pointer))
    }

    /// Puts an ISO in a drive, or takes out what is there.
    ///
    /// # Errors
    /// There is no such drive or file, or the connection failed.
    pub fn change_medium(&mut self, drive: usize, path: Option<&Path>) -> Result<(), ControlError> {
        let path = path.map(std::path::absolute).transpose()?;
        self.command(&Request::ChangeMedium { drive, path })
    }

    /// Makes the connection one of the machine's streams.
    ///
    /// # Errors
    /// The connection failed.
    pub fn attach(mut self, stream: Stream) -> Result<Attached, ControlError> {
        let Reply::Attached = self.ask(&Request::Attach { stream })? else {
            return Err(ControlError::Confused);
        };
        self.reader.get_ref().set_read_timeout(None)?;
        self.reader.get_ref().set_write_timeout(None)?;
        let received = self.reader.buffer().to_vec();
        Ok(Attached { received, stream: self.reader.into_inner() })
    }

    /// Makes the connection tell what happens.
    ///
    /// # Errors
    /// The connection failed.
    pub fn listen(mut self) -> Result<Events, ControlError> {
        let Reply::Listening = self.ask(&Request::Listen)? else {
            return Err(ControlError::Confused);
        };
        self.reader.get_ref().set_read_timeout(None)?;
        Ok(Events { reader: self.reader })
    }
}

/// A stream of a machine.
#[derive(Debug)]
pub struct Attached {
    /// What came already, to be read before the stream.
    pub received: Vec<u8>,
    /// The stream.
    pub stream: UnixStream,
}

/// What happens to a machine: an iterator that waits for the next event, and ends when the machine's process does.
#[derive(Debug)]
pub struct Events {
    reader: BufReader<UnixStream>,
}

impl Events {
    /// Something that ends the iteration from another thread.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn canceller(&self) -> io::Result<impl Fn() + Send + 'static + use<>> {
        let stream = self.reader.get_ref().try_clone()?;
        Ok(move || {
            let _ = stream.shutdown(Shutdown::Both);
        })
    }
}

impl Iterator for Events {
    type Item = Event;
    fn next(&mut self) -> Option<Event> {
        read_line(&mut self.reader).ok().flatten()
    }
}
