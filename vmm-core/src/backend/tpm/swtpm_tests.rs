//! swtpm's protocol against a peer that is scripted, and against the real one.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use super::*;

/// Long enough for any machine; only what hangs meets it.
const PATIENT: Limits = Limits { command: Duration::from_secs(120), control: Duration::from_secs(60) };
/// For peers that are known never to answer.
const HASTY: Limits = Limits { command: Duration::from_millis(50), control: Duration::from_millis(50) };
const GET_RANDOM: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];
const STARTUP: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
const OK: &[u8] = &[0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

/// The other end of the channels.
struct Peer {
    control: UnixStream,
    data: UnixStream,
}

impl Peer {
    /// Expects a request with this payload and answers with the bytes.
    fn expect(&mut self, request: u32, payload: &[u8], answer: &[u8]) {
        let mut message = vec![0; 4 + payload.len()];
        self.control.read_exact(&mut message).unwrap();
        assert_eq!(message, [&request.to_be_bytes(), payload].concat());
        self.control.write_all(answer).unwrap();
    }

    fn command(&mut self, command: &[u8], response: &[u8]) {
        let mut message = vec![0; command.len()];
        self.data.read_exact(&mut message).unwrap();
        assert_eq!(message, command);
        self.data.write_all(response).unwrap();
    }

    fn powers_on(&mut self) {
        self.expect(request::STOP, &[], &[0; 4]);
        self.expect(request::SET_BUFFERSIZE, &3968u32.to_be_bytes(), &numbers_of([0, 3968, 2808, 4096]));
        self.expect(request::INIT, &1u32.to_be_bytes(), &[0; 4]);
    }
}

fn numbers_of(numbers: [u32; 4]) -> Vec<u8> {
    numbers.map(u32::to_be_bytes).concat()
}

/// A TPM whose other end does what `script` says, on a thread of its own.
fn scripted(limits: Limits, script: impl FnOnce(Peer) + Send + 'static) -> (Swtpm, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let peer = std::thread::spawn(move || {
        let mut request = [0; 4];
        theirs.read_exact(&mut request).unwrap();
        assert_eq!(u32::from_be_bytes(request), request::GET_CAPABILITY);
        theirs.write_all(&0xffffu64.to_be_bytes()).unwrap();
        let (count, data) = theirs.recv_with_fd(&mut request).unwrap();
        assert_eq!((count, u32::from_be_bytes(request)), (4, request::SET_DATAFD));
        theirs.write_all(&[0; 4]).unwrap();
        script(Peer { control: theirs, data: UnixStream::from(std::os::fd::OwnedFd::from(data.unwrap())) });
    });
    (Swtpm::connect(ours, limits).unwrap(), peer)
}

#[test]
fn commands_take_the_data_channel_and_the_locality_is_told_once() {
    let (mut tpm, peer) = scripted(PATIENT, |mut peer| {
        peer.powers_on();
        peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
        peer.command(STARTUP, OK);
        peer.command(GET_RANDOM, OK);
        peer.expect(request::SET_LOCALITY, &[3], &[0; 4]);
        peer.command(GET_RANDOM, OK);
        peer.expect(request::SHUTDOWN, &[], &[]);
    });
    tpm.power_on().unwrap();
    assert_eq!(tpm.execute(0, STARTUP).unwrap(), OK);
    assert_eq!(tpm.execute(0, GET_RANDOM).unwrap(), OK);
    assert_eq!(tpm.execute(3, GET_RANDOM).unwrap(), OK);
    drop(tpm);
    peer.join().unwrap();
}

#[test]
fn a_cancel_goes_out_while_the_command_is_carried_out() {
    let (mut tpm, peer) = scripted(PATIENT, |mut peer| {
        peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
        let mut message = [0; 12];
        peer.data.read_exact(&mut message).unwrap();
        let mut cancel = [0; 4];
        peer.control.read_exact(&mut cancel).unwrap();
        assert_eq!(u32::from_be_bytes(cancel), request::CANCEL_TPM_CMD);
        peer.data.write_all(&[0x80, 1, 0, 0, 0, 10, 0, 0, 9, 9]).unwrap();
        // It is no failure that it had nothing to cancel any more.
        peer.control.write_all(&9u32.to_be_bytes()).unwrap();
        peer.command(GET_RANDOM, OK);
    });
    tpm.interrupt().cancel();
    assert_eq!(tpm.execute(0, GET_RANDOM).unwrap()[8..], [9, 9]);
    assert_eq!(tpm.execute(0, GET_RANDOM).unwrap(), OK);
    peer.join().unwrap();
}

#[test]
fn a_tpm_that_is_gone_silent_or_mad_is_an_error_and_is_not_asked_again() {
    type Script = Box<dyn FnOnce(Peer) -> Option<Peer> + Send>;
    let scripts: [(&str, Script); 6] = [
        ("has ended", Box::new(|_| None)),
        ("did not answer", Box::new(Some)),
        (
            "has ended",
            Box::new(|mut peer| {
                peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
                peer.data.write_all(&OK[..7]).unwrap();
                None
            }),
        ),
        (
            "nonsense",
            Box::new(|mut peer| {
                peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
                peer.data.write_all(&[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).unwrap();
                Some(peer)
            }),
        ),
        (
            "nonsense",
            Box::new(|mut peer| {
                peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
                peer.data.write_all(&[0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0]).unwrap();
                Some(peer)
            }),
        ),
        (
            "did not answer",
            Box::new(|mut peer| {
                peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
                peer.data.write_all(&OK[..9]).unwrap();
                Some(peer)
            }),
        ),
    ];
    for (words, script) in scripts {
        let limits = if words == "did not answer" { HASTY } else { PATIENT };
        let (keep, kept) = std::sync::mpsc::channel();
        let (mut tpm, peer) = scripted(Limits { control: PATIENT.control, ..limits }, move |peer| {
            keep.send(script(peer)).unwrap();
        });
        tpm.limits = limits;
        let error = tpm.execute(0, GET_RANDOM).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let error = tpm.power_on().unwrap_err();
        assert!(matches!(error, TpmError::Broken), "{error}");
        drop(kept);
        let _ = peer.join();
    }
}

#[test]
fn refusals_are_told_with_their_code_and_leave_the_tpm_usable() {
    let (mut tpm, peer) = scripted(PATIENT, |mut peer| {
        peer.expect(request::STOP, &[], &[0; 4]);
        peer.expect(request::SET_BUFFERSIZE, &3968u32.to_be_bytes(), &numbers_of([0, 3968, 2808, 4096]));
        peer.expect(request::INIT, &1u32.to_be_bytes(), &9u32.to_be_bytes());
        let first = [0, 1, 0].map(u32::to_be_bytes).concat();
        peer.expect(request::GET_STATEBLOB, &first, &9u32.to_be_bytes());
        peer.expect(request::GET_STATEBLOB, &first, &numbers_of([9, 0, 0, 0]));
        peer.powers_on();
    });
    let error = tpm.power_on().unwrap_err().to_string();
    assert_eq!(error, "swtpm refused to power on (result 0x9)");
    for _ in 0..2 {
        assert_eq!(tpm.save().unwrap_err().to_string(), "swtpm refused to give its state (result 0x9)");
    }
    tpm.power_on().unwrap();
    peer.join().unwrap();
}

#[test]
fn a_swtpm_that_lacks_something_is_told_to_be_too_old() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&0xfffu64.to_be_bytes()).unwrap();
    let error = Swtpm::connect(ours, PATIENT).err().unwrap();
    assert!(matches!(error, TpmError::TooOld { found: 0xfff, .. }), "{error}");
}

#[test]
fn an_end_does_not_wait_for_the_answer() {
    let (started, starts) = std::sync::mpsc::channel();
    let (mut tpm, peer) = scripted(PATIENT, move |mut peer| {
        peer.expect(request::SET_LOCALITY, &[0], &[0; 4]);
        let mut message = [0; 12];
        peer.data.read_exact(&mut message).unwrap();
        started.send(()).unwrap();
        // Until the other end is gone.
        let _ = peer.data.read(&mut message);
    });
    let interrupt = tpm.interrupt();
    let worker = std::thread::spawn(move || tpm.execute(0, GET_RANDOM));
    starts.recv().unwrap();
    interrupt.end();
    assert!(matches!(worker.join().unwrap(), Err(TpmError::Ended)));
    peer.join().unwrap();
}

#[test]
fn state_that_claims_to_be_endless_or_stands_still_is_nonsense() {
    for head in [[0, 0, u32::MAX, 16], [0, 0, 16, 0], [0, 0, 8, 16], [0, 0, 0, 1]] {
        let (mut tpm, peer) = scripted(PATIENT, move |mut peer| {
            peer.expect(request::GET_STATEBLOB, &[0, 1, 0].map(u32::to_be_bytes).concat(), &numbers_of(head));
            let _ = peer.control.read(&mut [0; 4]);
        });
        let error = tpm.save().unwrap_err();
        assert!(matches!(error, TpmError::Nonsense { .. }), "{error}");
        drop(tpm);
        peer.join().unwrap();
    }
}

#[test]
fn state_that_comes_in_pieces_is_put_together() {
    let (mut tpm, peer) = scripted(PATIENT, |mut peer| {
        let ask = |kind: u32, offset: u32| [0, kind, offset].map(u32::to_be_bytes).concat();
        peer.expect(request::GET_STATEBLOB, &ask(1, 0), &[&numbers_of([0, 2, 5, 3]), &b"abc"[..]].concat());
        peer.expect(request::GET_STATEBLOB, &ask(1, 3), &[&numbers_of([0, 2, 5, 2]), &b"de"[..]].concat());
        peer.expect(request::GET_STATEBLOB, &ask(2, 0), &numbers_of([0; 4]));
        peer.expect(request::GET_STATEBLOB, &ask(3, 0), &numbers_of([0x800, 0, 0, 0]));
    });
    let permanent = Blob { flags: 2, bytes: Bytes(b"abcde".to_vec()) };
    assert_eq!(tpm.save().unwrap(), TpmState { permanent, ..TpmState::default() });
    peer.join().unwrap();
}

/// The real one, with its state in `folder`.
struct Real {
    child: Child,
}

impl Real {
    fn start(folder: &Path) -> (Real, Swtpm) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // The child's standard input is its control channel.
        let stdin = File::from(theirs.as_fd().try_clone_to_owned().unwrap());
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", "dir=.", "--ctrl", "type=unixio,clientfd=0", "--terminate"])
            .current_dir(folder)
            .stdin(Stdio::from(stdin))
            .spawn()
            .expect("swtpm is missing: install the package swtpm, or run './dev setup'");
        drop(theirs);
        (Real { child }, Swtpm::connect(ours, PATIENT).unwrap())
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TPM2_PCR_Read of SHA-256's PCR 16, which anybody may extend.
const PCR_READ: &[u8] = &[0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1];

/// TPM2_PCR_Extend of PCR 16 with 32 bytes, by an empty password.
fn pcr_extend() -> Vec<u8> {
    let head = [0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, 16];
    let session = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    [&head[..], &session, &[0, 0, 0, 1, 0, 0x0b], &[7; 32]].concat()
}

#[test]
fn a_checkpoint_of_the_real_swtpm_brings_back_its_pcrs_in_another_process() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (real, mut tpm) = Real::start(first.path());
    tpm.power_on().unwrap();
    assert_eq!(tpm.execute(0, STARTUP).unwrap(), OK);
    let empty = tpm.execute(0, PCR_READ).unwrap();
    assert_eq!(tpm.execute(0, &pcr_extend()).unwrap()[6..10], [0; 4]);
    let extended = tpm.execute(0, PCR_READ).unwrap();
    assert_ne!(empty, extended);
    let random = tpm.execute(3, GET_RANDOM).unwrap();
    assert_eq!((random.len(), &random[6..10]), (28, &[0; 4][..]));
    let state = tpm.save().unwrap();
    assert!(!state.permanent.bytes.0.is_empty() && !state.volatile.bytes.0.is_empty());
    drop((tpm, real));

    let (_real, mut tpm) = Real::start(second.path());
    tpm.power_on().unwrap();
    tpm.restore(&state).unwrap();
    // No start-up: it is in the middle of its life.
    assert_eq!(tpm.execute(0, PCR_READ).unwrap(), extended);
    tpm.power_on().unwrap();
    assert_eq!(tpm.execute(0, PCR_READ).unwrap()[6..10], [0, 0, 1, 0], "TPM_RC_INITIALIZE");
    assert_eq!(tpm.execute(0, STARTUP).unwrap(), OK);
    // The random part of the head is the PCR's update counter.
    assert_eq!(tpm.execute(0, PCR_READ).unwrap()[14..], empty[14..]);
}

#[test]
fn a_real_swtpm_that_is_killed_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (real, mut tpm) = Real::start(folder.path());
    tpm.power_on().unwrap();
    drop(real);
    let error = tpm.execute(0, STARTUP).unwrap_err();
    assert!(matches!(error, TpmError::Gone), "{error}");
}
