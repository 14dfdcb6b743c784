//! A stream of a machine on the terminal, or on pipes: raw where there is a terminal, so that every key reaches the guest;
//! Ctrl-] leaves.

use std::io::{self, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use vmm_core::backend::chardev::CharPort;

use super::run::Asked;
use super::signals::Signals;
use super::{Session, Streams};
use crate::control::Attached;

/// Ctrl-]: leaves the terminal, as in telnet.
const ESCAPE: u8 = 0x1d;
/// What is moved at once, bytes.
const CHUNK: usize = 4096;

/// Why a terminal's session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The other side is done.
    Stream,
    /// The person typed Ctrl-].
    Escape,
    /// Nobody reads the output any more.
    Output,
    /// A second signal.
    Signal,
}

/// The terminal in raw mode; as it was when dropped.
struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes standard input raw if it is a terminal.
    fn enter() -> Option<Raw> {
        let before = tcgetattr(stdin()).ok().filter(|_| isatty(stdin()))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Standard input on its way to a guest: what was read and not yet taken.
struct Input {
    raw: Option<Raw>,
    open: bool,
    pending: Vec<u8>,
}

impl Input {
    fn open() -> Input {
        let raw = Raw::enter();
        if raw.is_some() {
            eprint!("orangery: Ctrl-] leaves\r\n");
        }
        Input { raw, open: true, pending: Vec::new() }
    }

    /// Whether there is room to read more.
    fn wants_more(&self) -> bool {
        self.open && self.pending.is_empty()
    }

    /// Reads what is typed; says whether it was Ctrl-].
    fn read(&mut self) -> io::Result<bool> {
        let mut chunk = [0; CHUNK];
        match rustix::io::read(stdin(), &mut chunk) {
            // EIO: the terminal is gone.
            Ok(0) | Err(Errno::IO) => self.open = false,
            Ok(count) => {
                let bytes = &chunk[..count];
                let escape = bytes.iter().position(|&b| b == ESCAPE).filter(|_| self.raw.is_some());
                if escape.is_some() {
                    // What the shell says next starts on a line of its own.
                    eprint!("\r\n");
                }
                self.pending.extend_from_slice(&bytes[..escape.unwrap_or(count)]);
                return Ok(escape.is_some());
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(false)
    }
}

/// A guest's output on its way to standard output. It is written only when there is room: a reader that has stopped reading
/// must not keep this process from hearing signals.
#[derive(Default)]
struct Output {
    pending: Vec<u8>,
}

impl Output {
    /// Writes what there is room for; `false` when nobody reads any more.
    fn write(&mut self) -> io::Result<bool> {
        // A pipe that is writable takes this much without blocking (PIPE_BUF, pipe(7)).
        let chunk = &self.pending[..self.pending.len().min(CHUNK)];
        match rustix::io::write(stdout(), chunk) {
            Ok(count) => drop(self.pending.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(Errno::PIPE | Errno::IO) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }
}

/// Writes all of it to standard output; `false` when nobody reads there.
fn show(mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match rustix::io::write(stdout(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            // Somebody made the terminal non-blocking.
            Err(Errno::AGAIN) => wait(&mut [interest(stdout().as_fd(), PollFlags::OUT)])?,
            Err(Errno::PIPE) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

fn interest(fd: BorrowedFd<'_>, flags: PollFlags) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, flags)
}

fn wait(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    match poll(fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Puts the serial port of a machine in this process on the terminal until the machine stops, and answers signals. The
/// other streams, whom nobody listens to, are let run dry.
///
/// # Errors
/// The terminal fails.
pub(super) fn serve(session: &Session, streams: &Streams, signals: &Signals) -> io::Result<Ended> {
    let Streams { serial, console, debug } = streams;
    let mut input = Input::open();
    let mut output = Output::default();
    let mut asked = Asked::default();
    let (keys, screen) = (stdin(), stdout());
    let mut chunk = [0; CHUNK];
    loop {
        // Asked before the port is read: what the guest said last is in it by then.
        let stopped = session.has_stopped();
        for port in [serial, console, debug] {
            port.acknowledge();
        }
        serial.acknowledge_writable();
        if output.pending.is_empty() {
            let count = serial.read(&mut chunk);
            output.pending.extend_from_slice(&chunk[..count]);
        }
        for port in [console, debug] {
            while port.read(&mut chunk) > 0 {}
        }
        if stopped && output.pending.is_empty() {
            return Ok(Ended::Stream);
        }
        let taken = serial.write(&input.pending);
        input.pending.drain(..taken);
        if asked.answer(session, signals) {
            return Ok(Ended::Signal);
        }
        let mut fds: Vec<PollFd<'_>> = vec![interest(signals.as_fd(), PollFlags::IN)];
        if !stopped {
            let always = [session.stopped(), console.as_fd(), debug.as_fd()];
            fds.extend(always.map(|fd| interest(fd, PollFlags::IN)));
        }
        if !input.pending.is_empty() {
            fds.push(interest(serial.writable(), PollFlags::IN));
        }
        let (writing, reading) = (!output.pending.is_empty(), input.wants_more() && !stopped);
        fds.push(if writing {
            interest(screen.as_fd(), PollFlags::OUT)
        } else {
            interest(serial.as_fd(), PollFlags::IN)
        });
        if reading {
            fds.push(interest(keys.as_fd(), PollFlags::IN));
        }
        wait(&mut fds)?;
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let (typed, room) = (reading && ready(fds.len() - 1), writing && ready(fds.len() - 1 - usize::from(reading)));
        if room && !output.write()? {
            return Ok(Ended::Output);
        }
        if typed && input.read()? {
            return Ok(Ended::Escape);
        }
    }
}

/// Puts a stream of a machine in another process on the terminal until either side ends it.
///
/// # Errors
/// The terminal or the connection fails.
pub fn attach(attached: Attached) -> io::Result<()> {
    let Attached { received, stream } = attached;
    if show(&received)? {
        relay(&stream)?;
    }
    Ok(())
}

/// Moves what comes on a stream to the terminal and what is typed there to the stream, until either ends.
///
/// # Errors
/// The terminal or the connection fails.
pub(super) fn relay(stream: &UnixStream) -> io::Result<Ended> {
    stream.set_nonblocking(true)?;
    let mut input = Input::open();
    let mut said_all = false;
    let keys = stdin();
    loop {
        let mut fds = vec![interest(stream.as_fd(), PollFlags::IN)];
        if !input.pending.is_empty() {
            fds[0] = interest(stream.as_fd(), PollFlags::IN | PollFlags::OUT);
        }
        let reading = input.wants_more();
        if reading {
            fds.push(interest(keys.as_fd(), PollFlags::IN));
        }
        wait(&mut fds)?;
        let typed = reading && fds.last().is_some_and(|fd| !fd.revents().is_empty());
        if typed && input.read()? {
            return Ok(Ended::Escape);
        }
        if let Some(ended) = receive(stream)? {
            return Ok(ended);
        }
        if !input.pending.is_empty() {
            match rustix::io::write(stream, &input.pending) {
                Ok(count) => drop(input.pending.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Ended::Stream),
                Err(error) => return Err(error.into()),
            }
        }
        if !input.open && input.pending.is_empty() && !said_all {
            said_all = true;
            stream.shutdown(std::net::Shutdown::Write)?;
        }
    }
}

/// Shows what came, and says whether the stream or the output has ended.
fn receive(stream: &UnixStream) -> io::Result<Option<Ended>> {
    let mut chunk = [0; CHUNK];
    match rustix::io::read(stream, &mut chunk) {
        Ok(0) | Err(Errno::CONNRESET) => Ok(Some(Ended::Stream)),
        Ok(count) => Ok((!show(&chunk[..count])?).then_some(Ended::Output)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The port's end of a stream that nobody shows.
pub(super) fn discard(session: &Session, streams: &Streams) -> io::Result<()> {
    let Streams { serial, console, debug } = streams;
    let ports: [&CharPort; 3] = [serial, console, debug];
    while !session.has_stopped() {
        for port in ports {
            port.acknowledge();
            while port.read(&mut [0; CHUNK]) > 0 {}
        }
        let mut fds = vec![interest(session.stopped(), PollFlags::IN)];
        fds.extend(ports.map(|port| interest(port.as_fd(), PollFlags::IN)));
        wait(&mut fds)?;
    }
    Ok(())
}
