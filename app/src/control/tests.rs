//! Client and server against one another, with a machine that only remembers what it was asked.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::client::PATIENCE;
use super::protocol::{MAX_LINE, MAX_TEXT, Pointer, Reply, Request, VERSION, read_line, write_line};
use super::server::{Host, Server};
use super::*;
use crate::library::Timestamp;

#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<Request>>,
    typed: Mutex<Vec<keys::Change>>,
    pointed: Mutex<Vec<Pointer>>,
    listeners: Mutex<Vec<Sender<Event>>>,
}

impl Host for Fake {
    fn identity(&self) -> (String, String) {
        ("id".into(), "Fake".into())
    }
    fn state(&self) -> State {
        State {
            id: "id".into(),
            name: "Fake".into(),
            pid: 1,
            power: Power::Paused,
            since: Timestamp(0),
            screen: Some((640, 480)),
            frames: 7,
            tablet: true,
            without_saving: false,
            window: false,
            drives: vec![None],
            problem: None,
        }
    }
    fn command(&self, request: Request) -> Result<(), String> {
        if request == Request::Resume {
            return Err("it is not paused".into());
        }
        self.asked.lock().unwrap().push(request);
        Ok(())
    }
    fn work(&self, request: Request, progress: &mut dyn FnMut(u64, u64) -> bool) -> Result<(), String> {
        // It has no end until somebody gives it up, where it was asked for twice.
        let again = self.asked.lock().unwrap().contains(&request);
        let slow = request == Request::KeepOnTimeline;
        self.asked.lock().unwrap().push(request);
        let mut done = 0;
        if slow {
            // Its answer takes longer than whoever waits for the machine's end.
            std::thread::sleep(Duration::from_millis(200));
        }
        while again || done == 0 {
            if !progress(done, 5) {
                self.asked.lock().unwrap().clear();
                return Err("it was cancelled".into());
            }
            done += 1;
        }
        Ok(())
    }
    fn screenshot(&self, max_width: Option<u32>) -> Result<Screenshot, String> {
        let width = max_width.ok_or("its screen is off")?;
        // It has line ends in it, as a PNG has.
        Ok(Screenshot { width, height: 2, png: b"\n{}\n".repeat(50_000) })
    }
    fn keys(&self, changes: &[keys::Change]) {
        self.typed.lock().unwrap().extend(changes);
    }
    fn pointer(&self, pointer: Pointer) {
        self.pointed.lock().unwrap().push(pointer);
    }
    fn attach(&self, stream: Stream, mut client: UnixStream) -> Result<(), String> {
        client.write_all(format!("{stream:?}").as_bytes()).unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        client.write_all(&[byte[0] + 1]).unwrap();
        Ok(())
    }
    fn listen(&self) -> Receiver<Event> {
        let (sender, receiver) = channel();
        self.listeners.lock().unwrap().push(sender);
        receiver
    }
}

struct Bench {
    dir: tempfile::TempDir,
    fake: Arc<Fake>,
    server: Option<Server>,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake::default());
        let server = Some(Server::start_in(dir.path(), "id", fake.clone()).unwrap());
        Bench { dir, fake, server }
    }

    fn client(&self) -> Client {
        Client::connect_in(self.dir.path(), "id", PATIENCE).unwrap()
    }

    /// A connection that speaks for itself.
    fn raw(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(self.dir.path().join("id.sock")).unwrap())
    }
}

#[test]
fn work_tells_how_far_it_is_and_is_given_up_when_asked_or_with_its_connection() {
    let bench = Bench::new();
    let mut told = Vec::new();
    bench
        .client()
        .work(&Request::Suspend, |done, total| {
            told.push((done, total));
            true
        })
        .unwrap();
    assert_eq!(told, [(0, 5)]);
    let error = bench.client().work(&Request::Suspend, |_, _| false).unwrap_err();
    assert!(matches!(error, ControlError::Cancelled));
    assert!(bench.fake.asked.lock().unwrap().is_empty(), "the answer came before the machine gave it up");
    bench.client().work(&Request::Suspend, |_, _| true).unwrap();
    let mut raw = bench.raw();
    write_line(raw.get_mut(), &Request::Hello { version: VERSION }).unwrap();
    write_line(raw.get_mut(), &Request::Suspend).unwrap();
    while !matches!(read_line(&mut raw).unwrap(), Some(Reply::Progress { .. })) {}
    drop(raw);
    // The machine hears of it.
    while !bench.fake.asked.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
}

#[test]
fn work_that_is_done_before_it_could_be_given_up_is_done_and_the_connection_goes_on() {
    let bench = Bench::new();
    let mut raw = bench.raw();
    write_line(raw.get_mut(), &Request::Hello { version: VERSION }).unwrap();
    assert!(matches!(read_line(&mut raw).unwrap(), Some(Reply::Hello { .. })));
    write_line(raw.get_mut(), &Request::Suspend).unwrap();
    assert_eq!(read_line(&mut raw).unwrap(), Some(Reply::Progress { done: 0, total: 5 }));
    assert_eq!(read_line(&mut raw).unwrap(), Some(Reply::Done));
    write_line(raw.get_mut(), &Request::Cancel).unwrap();
    write_line(raw.get_mut(), &Request::ShutDown).unwrap();
    assert_eq!(read_line(&mut raw).unwrap(), Some(Reply::Done));
    assert_eq!(bench.fake.asked.lock().unwrap().last(), Some(&Request::ShutDown));
}

#[test]
fn a_client_is_greeted_and_answered() {
    let bench = Bench::new();
    let mut client = bench.client();
    assert_eq!((client.id(), client.name(), client.pid()), ("id", "Fake", std::process::id()));
    assert_eq!(client.state().unwrap(), bench.fake.state());
    client.command(&Request::ShutDown).unwrap();
    client.change_medium(1, Some(Path::new("/a b.iso"))).unwrap();
    let medium = Request::ChangeMedium { drive: 1, path: Some(PathBuf::from("/a b.iso")) };
    assert_eq!(*bench.fake.asked.lock().unwrap(), [Request::ShutDown, medium]);
}

#[test]
fn a_refusal_comes_with_its_reason_and_the_connection_goes_on() {
    let bench = Bench::new();
    let mut client = bench.client();
    let refused = client.command(&Request::Resume).unwrap_err();
    assert!(matches!(refused, ControlError::Refused(why) if why == "it is not paused"));
    assert!(matches!(client.screenshot(None), Err(ControlError::Refused(_))));
    assert!(client.state().is_ok());
}

#[test]
fn a_screenshot_arrives_whole_and_the_next_answer_after_it() {
    let bench = Bench::new();
    let mut client = bench.client();
    let shot = client.screenshot(Some(320)).unwrap();
    assert_eq!((shot.width, shot.height, shot.png.len()), (320, 2, 200_000));
    assert!(client.state().is_ok());
}

#[test]
fn keys_and_pointer_reach_the_machine() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.type_text("a").unwrap();
    client.press("enter").unwrap();
    let codes: Vec<u16> = bench.fake.typed.lock().unwrap().iter().map(|change| change.code).collect();
    assert_eq!(codes, [30, 30, 28, 28]);
    assert!(matches!(client.type_text("é"), Err(ControlError::Refused(_))));
    assert!(matches!(client.press("hyper"), Err(ControlError::Refused(_))));
    assert!(matches!(client.type_text(&"x".repeat(MAX_TEXT + 1)), Err(ControlError::Refused(_))));
    let pointer = Pointer { to: Some((0.25, 1.0)), ..Pointer::default() };
    client.pointer(pointer).unwrap();
    assert_eq!(*bench.fake.pointed.lock().unwrap(), [pointer]);
}

#[test]
fn an_attached_connection_is_a_stream_both_ways() {
    let bench = Bench::new();
    let Attached { mut received, mut stream } = bench.client().attach(Stream::Console).unwrap();
    stream.write_all(b"A").unwrap();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"ConsoleB");
}

#[test]
fn events_come_until_the_machine_ends() {
    let bench = Bench::new();
    let events = bench.client().listen().unwrap();
    let told = [Event::Power { power: Power::Running }, Event::Ejected { drive: 2 }];
    let listener = bench.fake.listeners.lock().unwrap().pop().unwrap();
    for event in &told {
        listener.send(event.clone()).unwrap();
    }
    drop(listener);
    assert_eq!(events.collect::<Vec<_>>(), told);
}

#[test]
fn waiting_for_events_can_be_ended_from_outside() {
    let bench = Bench::new();
    let events = bench.client().listen().unwrap();
    let cancel = events.canceller().unwrap();
    let waiting = std::thread::spawn(move || events.count());
    cancel();
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn a_socket_that_nobody_listens_on_is_told_from_none() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Client::connect_in(dir.path(), "id", PATIENCE), Err(ControlError::NotRunning)));
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("id.sock")).unwrap());
    assert!(matches!(Client::connect_in(dir.path(), "id", PATIENCE), Err(ControlError::NotRunning)));
    // A new process takes the dead one's place.
    let _server = Server::start_in(dir.path(), "id", Arc::new(Fake::default())).unwrap();
    assert!(Client::connect_in(dir.path(), "id", PATIENCE).is_ok());
}

#[test]
fn a_server_that_ends_takes_its_socket_with_it() {
    let mut bench = Bench::new();
    drop(bench.client());
    drop(bench.server.take());
    assert_eq!(std::fs::read_dir(bench.dir.path()).unwrap().count(), 0);
    assert!(matches!(Client::connect_in(bench.dir.path(), "id", PATIENCE), Err(ControlError::NotRunning)));
}

#[test]
fn a_server_that_ends_lets_an_answer_be_finished() {
    let mut bench = Bench::new();
    let mut raw = bench.raw();
    write_line(raw.get_mut(), &Request::Hello { version: VERSION }).unwrap();
    write_line(raw.get_mut(), &Request::KeepOnTimeline).unwrap();
    while bench.fake.asked.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    drop(bench.server.take());
    // The process would be gone now.
    raw.get_ref().set_nonblocking(true).unwrap();
    let said: Vec<Reply> = std::iter::from_fn(|| read_line(&mut raw).ok().flatten()).collect();
    assert_eq!(said.last(), Some(&Reply::Done), "{said:?}");
}

#[test]
fn a_folder_with_a_long_path_works_too() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("x".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let _server = Server::start_in(&deep, "id", Arc::new(Fake::default())).unwrap();
    assert!(Client::connect_in(&deep, "id", PATIENCE).unwrap().state().is_ok());
}

#[test]
fn who_does_not_say_hello_or_sends_nonsense_is_sent_away() {
    let bench = Bench::new();
    for nonsense in ["{\"request\":\"state\"}\n", "GET / HTTP/1.1\r\n", "\n"] {
        let mut raw = bench.raw();
        raw.get_mut().write_all(nonsense.as_bytes()).unwrap();
        let mut rest = String::new();
        let _ = raw.read_to_string(&mut rest);
        assert!(!rest.contains("\"reply\":\"state\""), "{nonsense}: {rest}");
    }
    let mut raw = bench.raw();
    raw.get_mut().write_all(format!("{{\"request\":\"hello\",\"version\":{VERSION}}}\n").as_bytes()).unwrap();
    let mut line = String::new();
    raw.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"reply\":\"hello\""), "{line}");
    raw.get_mut().write_all(b"{\"request\":\"levitate\"}\n").unwrap();
    line.clear();
    raw.read_line(&mut line).unwrap();
    assert!(line.contains("refused") && line.contains("levitate"), "{line}");
    assert!(bench.client().state().is_ok());
}

#[test]
fn a_line_that_never_ends_is_refused() {
    let bench = Bench::new();
    let mut raw = bench.raw();
    // The server may close before all of it is sent.
    let _ = raw.get_mut().write_all(&vec![b' '; MAX_LINE * 4]);
    let mut rest = Vec::new();
    let _ = raw.read_to_end(&mut rest);
    assert!(bench.client().state().is_ok());
}

#[test]
fn another_version_is_told_what_is_here_and_let_go() {
    let bench = Bench::new();
    let mut raw = bench.raw();
    raw.get_mut().write_all(b"{\"request\":\"hello\",\"version\":999}\n").unwrap();
    let mut rest = String::new();
    raw.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(&format!("\"version\":{VERSION}")), "{rest}");
}

#[test]
fn more_clients_than_fit_are_sent_away_and_the_others_stay() {
    let bench = Bench::new();
    let mut first = bench.client();
    let others: Vec<Result<Client, ControlError>> =
        (0..64).map(|_| Client::connect_in(bench.dir.path(), "id", PATIENCE)).collect();
    assert!(others.iter().any(Result::is_err));
    assert!(first.state().is_ok());
}

#[test]
fn a_process_that_does_not_answer_is_told_from_one_that_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(dir.path().join("id.sock")).unwrap();
    let asked = Client::connect_in(dir.path(), "id", std::time::Duration::from_millis(20));
    assert!(matches!(asked, Err(ControlError::Silent)));
}
