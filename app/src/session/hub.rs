//! The thread between a machine's character devices and everyone who listens: each stream goes to its log file, to a
//! history for those who come later, and to the clients that are attached; what clients send goes to the device.
//!
//! Nobody waits for anybody: a client that does not read is let go, a guest that does not read stops the clients that
//! write to it. The one exception is the terminal that this process was started on, which may be a pipe to a program that
//! takes its time: a stream waits for it.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vmm_core::backend::chardev::CharPort;

use super::log::Log;

/// What of a stream is kept for those who attach later, bytes.
pub const HISTORY: usize = 64 * 1024;
/// What waits for a slow client before it is let go, bytes.
const MAX_PENDING: usize = 1 << 20;
/// Clients of one stream.
const MAX_CLIENTS: usize = 16;
/// How long clients have at the end for what waits for them.
const FAREWELL: Duration = Duration::from_secs(1);
/// What is read at once, bytes.
const CHUNK: usize = 4096;
/// How many chunks are read of one port before the others have their turn.
const TURN: usize = 32;

/// One stream: the host's end of a device's port, and where it is logged.
pub struct Line {
    port: CharPort,
    log: Option<Log>,
    history: VecDeque<u8>,
    clients: Vec<Client>,
}

impl Line {
    /// A stream that starts now.
    pub fn new(port: CharPort, log: Option<Log>) -> Line {
        Line { port, log, history: VecDeque::new(), clients: Vec::new() }
    }

    /// Takes what the device sent. At most [`TURN`] chunks, so that no guest keeps the thread for itself; says whether
    /// there may be more.
    fn receive(&mut self) -> bool {
        if self.is_held() {
            return false;
        }
        self.port.acknowledge();
        let mut chunk = [0; CHUNK];
        for _ in 0..TURN {
            let count = self.port.read(&mut chunk);
            if count == 0 {
                return false;
            }
            let bytes = &chunk[..count];
            // A log that cannot be written is given up: the guest's output still goes to its listeners.
            if self.log.as_mut().is_some_and(|log| log.write(bytes).is_err()) {
                self.log = None;
            }
            let excess = (self.history.len() + count).saturating_sub(HISTORY);
            self.history.drain(..excess.min(self.history.len()));
            self.history.extend(bytes);
            for client in &mut self.clients {
                client.outgoing.extend(bytes);
            }
        }
        true
    }

    /// Whether it waits for a client.
    fn is_held(&self) -> bool {
        self.clients.iter().any(|client| client.waited_for && client.outgoing.len() >= HISTORY)
    }

    /// Adds a client, who hears the history first.
    fn attach(&mut self, stream: UnixStream, waited_for: bool) {
        if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
            return;
        }
        let outgoing = self.history.clone();
        self.clients.push(Client { stream, outgoing, waited_for, listens_only: false, open: true });
    }

    /// Moves what can be moved between the clients and the device, and drops the clients that are gone.
    fn exchange(&mut self) {
        for client in &mut self.clients {
            client.receive(&self.port);
            client.send();
        }
        self.clients.retain(|client| client.open && client.outgoing.len() <= MAX_PENDING);
    }
}

struct Client {
    stream: UnixStream,
    outgoing: VecDeque<u8>,
    /// It misses nothing: the stream waits.
    waited_for: bool,
    /// It will send nothing more, and still listens.
    listens_only: bool,
    open: bool,
}

impl Client {
    /// Moves what the client sent to the device, as far as there is room.
    fn receive(&mut self, port: &CharPort) {
        if self.listens_only {
            self.open = !self.is_gone();
            return;
        }
        let mut chunk = [0; CHUNK];
        let room = port.room().min(CHUNK);
        if room == 0 {
            return;
        }
        match self.stream.read(&mut chunk[..room]) {
            Ok(0) => {
                self.listens_only = true;
                self.open = !self.is_gone();
            }
            // Only this thread writes to the port: the room is still there.
            Ok(count) => _ = port.write(&chunk[..count]),
            Err(error) if is_temporary(&error) => {}
            Err(_) => self.open = false,
        }
    }

    /// Whether the other side closed both directions.
    fn is_gone(&self) -> bool {
        let mut fds = [interest(self.stream.as_fd(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    fn send(&mut self) {
        while !self.outgoing.is_empty() {
            let (front, _) = self.outgoing.as_slices();
            match self.stream.write(front) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if is_temporary(&error) => return,
                Err(_) => {
                    self.open = false;
                    return;
                }
            }
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

enum Message {
    Attach { line: usize, stream: UnixStream, waited_for: bool },
    Finish,
}

/// The thread; dropping it takes in what the devices sent last, and ends it.
pub struct Hub {
    messages: Sender<Message>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Hub {
    /// Starts the thread on these streams.
    ///
    /// # Errors
    /// The host is out of descriptors or threads.
    pub fn start(lines: Vec<Line>) -> io::Result<Hub> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let woken = wake.try_clone()?;
        let (messages, inbox) = channel();
        let thread = thread::Builder::new().name("streams".into()).spawn(move || run(lines, &inbox, &woken))?;
        Ok(Hub { messages, wake, thread: Some(thread) })
    }

    /// Gives the stream with this number to a client, from its history on.
    pub fn attach(&self, line: usize, client: UnixStream) {
        self.tell(Message::Attach { line, stream: client, waited_for: false });
    }

    /// The same to a client for whom the stream waits when he does not read.
    #[cfg(any(feature = "gui", test))]
    pub fn attach_patiently(&self, line: usize, client: UnixStream) {
        self.tell(Message::Attach { line, stream: client, waited_for: true });
    }

    /// Ends the thread once it has taken in what the devices sent last, and told it.
    pub fn finish(&self) {
        self.tell(Message::Finish);
    }

    fn tell(&self, message: Message) {
        // After the end there is nobody to tell.
        let _ = self.messages.send(message);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.finish();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mut lines: Vec<Line>, inbox: &Receiver<Message>, wake: &OwnedFd) {
    let (mut more, mut finish) = (false, false);
    loop {
        if !more && wait(&lines, wake).is_err() {
            return;
        }
        let _ = rustix::io::read(wake, &mut [0; 8]);
        while let Ok(message) = inbox.try_recv() {
            match message {
                Message::Attach { line, stream, waited_for } => {
                    if let Some(line) = lines.get_mut(line) {
                        line.attach(stream, waited_for);
                    }
                }
                Message::Finish => finish = true,
            }
        }
        more = false;
        for line in &mut lines {
            line.port.acknowledge_writable();
            more |= line.receive();
            line.exchange();
        }
        if finish && !more && !lines.iter().any(Line::is_held) {
            take_leave(&mut lines);
            return;
        }
    }
}

/// Gives the clients what waits for them: those that are waited for all of it, the others as far as they read soon.
fn take_leave(lines: &mut [Line]) {
    let end = Instant::now() + FAREWELL;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let clients = lines.iter_mut().flat_map(|line| &mut line.clients);
        let mut waiting: Vec<&mut Client> = clients
            .filter(|client| client.open && !client.outgoing.is_empty() && (client.waited_for || !left.is_zero()))
            .collect();
        if waiting.is_empty() {
            return;
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos().max(1_000_000)) };
        let mut fds: Vec<_> = waiting.iter().map(|client| interest(client.stream.as_fd(), PollFlags::OUT)).collect();
        let only_patient = left.is_zero();
        if poll(&mut fds, (!only_patient).then_some(&timeout)).is_err_and(|error| error != rustix::io::Errno::INTR) {
            return;
        }
        drop(fds);
        for client in &mut waiting {
            client.send();
        }
    }
}

/// Waits until a device sent something, a client can be read or written, or there is a message.
fn wait(lines: &[Line], wake: &OwnedFd) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = vec![interest(wake.as_fd(), PollFlags::IN)];
    for line in lines {
        if !line.is_held() {
            fds.push(interest(line.port.as_fd(), PollFlags::IN));
        }
        let room = line.port.room() > 0;
        if !room {
            fds.push(interest(line.port.writable(), PollFlags::IN));
        }
        for client in &line.clients {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, room && !client.listens_only);
            flags.set(PollFlags::OUT, !client.outgoing.is_empty());
            // The end of a connection is always told: not while it could not be acted on.
            if client.listens_only || !flags.is_empty() {
                fds.push(interest(client.stream.as_fd(), flags));
            }
        }
    }
    match poll(&mut fds, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn interest(fd: BorrowedFd<'_>, flags: PollFlags) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(log: Option<Log>) -> (Hub, CharPort) {
        let (device, host) = CharPort::pair().unwrap();
        (Hub::start(vec![Line::new(host, log)]).unwrap(), device)
    }

    fn read(stream: &mut UnixStream, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn who_attaches_late_hears_what_was_said_first() {
        let (hub, device) = hub(None);
        let (mut first, theirs) = UnixStream::pair().unwrap();
        device.write(b"boot ");
        hub.attach(0, theirs);
        assert_eq!(read(&mut first, 5), b"boot ");
        let (mut second, theirs) = UnixStream::pair().unwrap();
        hub.attach(0, theirs);
        assert_eq!(read(&mut second, 5), b"boot ");
        device.write(b"login");
        assert_eq!((read(&mut first, 5), read(&mut second, 5)), (b"login".to_vec(), b"login".to_vec()));
    }

    #[test]
    fn what_a_client_sends_reaches_the_device_in_order() {
        let (hub, device) = hub(None);
        let (mut client, theirs) = UnixStream::pair().unwrap();
        hub.attach(0, theirs);
        // More than the port holds: the rest waits in the socket until the device reads.
        let sent: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writer = thread::spawn(move || {
            client.write_all(&sent).unwrap();
            client
        });
        let mut received = Vec::new();
        let mut chunk = [0; 1000];
        while received.len() < expected.len() {
            let mut fds = [interest(device.as_fd(), PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            device.acknowledge();
            loop {
                let count = device.read(&mut chunk);
                if count == 0 {
                    break;
                }
                received.extend_from_slice(&chunk[..count]);
            }
        }
        assert_eq!(received, expected);
        drop(writer.join().unwrap());
    }

    #[test]
    fn a_client_that_goes_away_or_never_reads_disturbs_nobody() {
        let (hub, device) = hub(None);
        let (gone, theirs) = UnixStream::pair().unwrap();
        drop(gone);
        hub.attach(0, theirs);
        let (_silent, theirs) = UnixStream::pair().unwrap();
        hub.attach(0, theirs);
        let (mut listening, theirs) = UnixStream::pair().unwrap();
        hub.attach(0, theirs);
        let mut heard = 0;
        let mut sent = 0;
        while sent < 3 * MAX_PENDING {
            sent += device.write(&[7; CHUNK]);
            let count = listening.read(&mut [0; CHUNK]).unwrap();
            assert!(count > 0);
            heard += count;
        }
        while heard < sent {
            let count = listening.read(&mut [0; CHUNK]).unwrap();
            assert!(count > 0);
            heard += count;
        }
    }

    #[test]
    fn a_client_that_is_waited_for_misses_nothing() {
        let (hub, device) = hub(None);
        let (mut client, theirs) = UnixStream::pair().unwrap();
        hub.attach_patiently(0, theirs);
        // More than all that is kept on the way: the device has to wait.
        let mut sent = 0;
        let mut full = 0;
        while full < 1000 {
            let count = device.write(&[b'x'; CHUNK]);
            sent += count;
            full = if count == 0 { full + 1 } else { 0 };
            thread::yield_now();
        }
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            all
        });
        let mut rest = 3 * MAX_PENDING;
        while rest > 0 {
            let count = device.write(&vec![b'x'; rest.min(CHUNK)]);
            rest -= count;
            sent += count;
        }
        device.write(b"end");
        drop(hub);
        let all = reader.join().unwrap();
        assert!(all.len() >= sent && all.iter().filter(|&&byte| byte == b'x').count() == sent);
    }

    #[test]
    fn a_client_that_has_said_all_still_listens() {
        let (hub, device) = hub(None);
        let (mut client, theirs) = UnixStream::pair().unwrap();
        client.write_all(b"ls").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        hub.attach(0, theirs);
        poll(&mut [interest(device.as_fd(), PollFlags::IN)], None).unwrap();
        assert_eq!(device.read(&mut [0; 8]), 2);
        device.write(b"file");
        assert_eq!(read(&mut client, 4), b"file");
    }

    #[test]
    fn the_log_has_everything_also_what_came_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("serial.log");
        let (hub, device) = hub(Some(Log::start(path.clone()).unwrap()));
        device.write(b"the last words");
        drop(hub);
        assert_eq!(std::fs::read(path).unwrap(), b"the last words");
    }

    #[test]
    fn history_is_bounded() {
        let (device, host) = CharPort::pair().unwrap();
        let mut line = Line::new(host, None);
        for i in 0..40u8 {
            device.write(&[i; CHUNK]);
            line.receive();
        }
        assert_eq!(line.history.len(), HISTORY);
        assert_eq!(line.history.back(), Some(&39));
    }
}
