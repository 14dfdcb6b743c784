//! What goes over the control socket: one JSON object a line, a request from the client and a reply from the machine.
//!
//! The first request is [`Request::Hello`]; both sides refuse another [`VERSION`]. Three replies are followed by
//! something else than a line: [`Reply::Screenshot`] by its PNG, [`Reply::Attached`] by the raw stream until one side
//! closes, and [`Reply::Listening`] by one [`Event`] a line.

use std::io::{self, BufRead};
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vmm_core::vm::{Lifecycle, VmEvent};

use crate::library::{Timeline, Timestamp};

/// The protocol's version. Requests may be added to a version, never changed.
pub const VERSION: u32 = 1;
/// The longest line either side reads, bytes.
pub const MAX_LINE: usize = 64 * 1024;
/// The most text that is typed at once, characters.
pub const MAX_TEXT: usize = 4096;
/// The largest screenshot a client takes, bytes.
pub const MAX_PNG: usize = 256 << 20;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Who is there? The first request of every connection.
    Hello {
        /// The client's [`VERSION`].
        version: u32,
    },
    /// How the machine is.
    State,
    /// Presses the power button.
    ShutDown,
    /// Pulls the plug.
    PowerOff,
    /// Presses the reset button.
    Reset,
    /// Stops CPUs and devices.
    Pause,
    /// Goes on after a pause.
    Resume,
    /// Saves the machine and ends it: its next start goes on from there. Work: see [`Reply::Progress`].
    Suspend,
    /// Takes a snapshot. Work.
    TakeSnapshot {
        /// What to call it.
        name: String,
        /// What to write of it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        note: String,
    },
    /// Deletes a snapshot. Work; given up, what is left is done with the next one.
    DeleteSnapshot {
        /// Its name or id.
        name: String,
    },
    /// Keeps a timeline like this from now on, or none.
    SetTimeline {
        /// How; absent: none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeline: Option<Timeline>,
    },
    /// Gives a snapshot another name and note.
    DescribeSnapshot {
        /// Its name or id.
        snapshot: String,
        /// What to call it.
        name: String,
        /// What to write of it.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        note: String,
    },
    /// Gives up the work that goes on in this connection, whose answer then says whether that came in time. Has no answer of
    /// its own.
    Cancel,
    /// Makes a machine that goes on from this moment as well, beside this one. Work.
    Fork {
        /// What to call it.
        name: String,
    },
    /// Takes a checkpoint of the timeline, if the machine has one: before what loses something of it. Work.
    KeepOnTimeline,
    /// Puts a medium in a CD-ROM drive, or takes it out.
    ChangeMedium {
        /// Which drive, from 0.
        drive: usize,
        /// The ISO's absolute path.
        path: Option<PathBuf>,
    },
    /// The screen as a PNG.
    Screenshot {
        /// The widest it may be: a larger screen is scaled down.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_width: Option<u32>,
    },
    /// Types a text on a US keyboard.
    Type {
        /// At most [`MAX_TEXT`] characters.
        text: String,
    },
    /// Presses keys together, like `ctrl-alt-delete` (see [`super::keys`]).
    Press {
        /// Their names, joined by hyphens.
        keys: String,
    },
    /// Moves the pointer, turns its wheel, sets its buttons.
    Pointer(Pointer),
    /// The connection becomes a stream; what it said last comes first.
    Attach {
        /// Which one.
        stream: Stream,
    },
    /// The connection tells what happens from now on.
    Listen,
    /// Shows the machine's window in front, and opens it again if it was closed.
    Raise,
}

/// What the pointer does; what is absent stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pointer {
    /// Where to, as parts of the screen's width and height, 0.0 to 1.0: for a guest that takes positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<(f64, f64)>,
    /// By how many pixels: for a guest that takes movements.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<(i32, i32)>,
    /// A button and whether it is pressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub button: Option<(Button, bool)>,
    /// Notches of the wheel; away from the user is positive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wheel: Option<i32>,
}

/// A button of the pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Button {
    /// Left.
    Left,
    /// Middle.
    Middle,
    /// Right.
    Right,
}

/// A byte stream of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// The serial port, COM1 (`ttyS0`).
    Serial,
    /// The virtio console (`hvc0`).
    Console,
}

/// What the machine answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Who is there.
    Hello {
        /// The machine's [`VERSION`].
        version: u32,
        /// The machine's id.
        id: String,
        /// Its name.
        name: String,
        /// Its process.
        pid: u32,
    },
    /// Work goes on; any number of these come before [`Reply::Done`] or [`Reply::Refused`]. Closing the connection gives the
    /// work up.
    Progress {
        /// How much is done.
        done: u64,
        /// How much there is, in the same unit.
        total: u64,
    },
    /// It is done.
    Done,
    /// It is not done, and why.
    Refused {
        /// A sentence.
        message: String,
    },
    /// How the machine is.
    State(State),
    /// A PNG of `bytes` bytes follows the line.
    Screenshot {
        /// Its width, pixels.
        width: u32,
        /// Its height, pixels.
        height: u32,
        /// Its length.
        bytes: usize,
    },
    /// The stream follows the line.
    Attached,
    /// Events follow, one a line.
    Listening,
}

/// How a machine is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The process that runs it.
    pub pid: u32,
    /// What it is doing.
    pub power: Power,
    /// When it was started.
    pub since: Timestamp,
    /// Its screen's size, pixels; absent while the screen is off.
    pub screen: Option<(u32, u32)>,
    /// Changes when the screen may have changed: a thumbnail is worth taking again.
    pub frames: u64,
    /// The guest takes absolute pointer positions.
    pub tablet: bool,
    /// It has a window.
    pub window: bool,
    /// What happens in it is not saved.
    #[serde(default)]
    pub without_saving: bool,
    /// The medium in each CD-ROM drive.
    pub drives: Vec<Option<PathBuf>>,
    /// The last thing that went wrong, a sentence.
    pub problem: Option<String>,
}

/// What a machine is doing, as commands and the manager name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Power {
    /// It is being built.
    Starting,
    /// Its CPUs run.
    Running,
    /// It is paused.
    Paused,
    /// It is off, and goes on where it was when it is started.
    Suspended,
    /// It is off.
    Stopped,
}

impl Power {
    /// The word a person reads.
    pub fn word(self) -> &'static str {
        match self {
            Power::Starting => "starting",
            Power::Running => "running",
            Power::Paused => "paused",
            Power::Suspended => "suspended",
            Power::Stopped => "stopped",
        }
    }
}

impl From<Lifecycle> for Power {
    fn from(state: Lifecycle) -> Power {
        match state {
            Lifecycle::Created => Power::Starting,
            Lifecycle::Running => Power::Running,
            Lifecycle::Paused => Power::Paused,
            Lifecycle::Stopped => Power::Stopped,
        }
    }
}

/// What happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// It does something else now. `stopped` is the last event.
    Power {
        /// What.
        power: Power,
    },
    /// The guest restarted itself.
    GuestReset,
    /// The guest opened a CD-ROM drive.
    Ejected {
        /// Which drive, from 0.
        drive: usize,
    },
    /// Something went wrong.
    Problem {
        /// The part it happened in, like `disk 0`.
        source: String,
        /// What failed and why, a sentence.
        message: String,
        /// The machine was paused so that nothing is lost.
        paused: bool,
    },
}

impl From<&VmEvent> for Event {
    fn from(event: &VmEvent) -> Event {
        match event {
            VmEvent::State(state) => Event::Power { power: (*state).into() },
            VmEvent::GuestReset => Event::GuestReset,
            VmEvent::Ejected { drive } => Event::Ejected { drive: *drive },
            VmEvent::Problem(problem) => Event::Problem {
                source: problem.source.clone(),
                message: problem.message.clone(),
                paused: problem.paused,
            },
        }
    }
}

/// Reads one line of at most [`MAX_LINE`] bytes; `None` at the end of the stream.
///
/// # Errors
/// The stream fails, the line is too long, ends early, or is none that `T` understands.
pub fn read_line<T: DeserializeOwned>(reader: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    let mut bounded = io::Read::take(&mut *reader, MAX_LINE as u64 + 1);
    bounded.read_until(b'\n', &mut line)?;
    match line.last() {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) if line.len() > MAX_LINE => return Err(bad("a line is too long")),
        Some(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    serde_json::from_slice(&line).map(Some).map_err(|error| bad(&error.to_string()))
}

/// Writes one line.
///
/// # Errors
/// The stream fails.
pub fn write_line(writer: &mut impl io::Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line)
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_written_as_scripts_would() {
        let line = |request: &Request| serde_json::to_string(request).unwrap();
        assert_eq!(line(&Request::ShutDown), r#"{"request":"shut-down"}"#);
        assert_eq!(line(&Request::Attach { stream: Stream::Serial }), r#"{"request":"attach","stream":"serial"}"#);
        let click = Pointer { button: Some((Button::Left, true)), ..Pointer::default() };
        assert_eq!(line(&Request::Pointer(click)), r#"{"request":"pointer","button":["left",true]}"#);
    }

    #[test]
    fn lines_round_trip_and_the_end_is_told_from_a_broken_line() {
        let mut bytes = Vec::new();
        write_line(&mut bytes, &Request::Type { text: "a\nb".into() }).unwrap();
        write_line(&mut bytes, &Request::State).unwrap();
        let mut reader = &bytes[..];
        assert_eq!(read_line(&mut reader).unwrap(), Some(Request::Type { text: "a\nb".into() }));
        assert_eq!(read_line(&mut reader).unwrap(), Some(Request::State));
        assert_eq!(read_line::<Request>(&mut reader).unwrap(), None);
        let broken = read_line::<Request>(&mut &b"{\"request\""[..]).unwrap_err();
        assert_eq!(broken.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_line_without_an_end_is_not_read_for_ever() {
        let endless = vec![b'x'; MAX_LINE * 2];
        let mut reader = &endless[..];
        assert_eq!(read_line::<Request>(&mut reader).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(endless.len() - reader.len() <= MAX_LINE + 1);
    }

    proptest! {
        #[test]
        fn no_line_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_line::<Request>(&mut &bytes[..]);
            let _ = read_line::<Reply>(&mut &bytes[..]);
        }
    }
}
