//! The firmware's debug port 0x402 (SeaBIOS and OVMF call it the QEMU debug console): what is written is text.

use crate::backend::chardev::CharPort;
use crate::hw::{Action, BusDevice};

/// What the port reads as: firmware logs only where it finds this.
const SIGNATURE: u8 = 0xe9;

/// The port. It has no state.
pub struct DebugCon {
    port: CharPort,
}

impl DebugCon {
    /// A port that writes to `port`; what nobody takes from there in time is lost.
    pub fn new(port: CharPort) -> DebugCon {
        DebugCon { port }
    }
}

impl BusDevice for DebugCon {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(SIGNATURE);
    }

    fn write(&self, _: u64, data: &[u8]) -> Option<Action> {
        self.port.write(data);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_arrives_and_the_signature_reads_back() {
        let (ours, theirs) = CharPort::pair().unwrap();
        let port = DebugCon::new(theirs);
        for byte in b"SeaBIOS" {
            assert_eq!(port.write(0, &[*byte]), None);
        }
        let mut text = [0; 16];
        assert_eq!((ours.read(&mut text), &text[..7]), (7, &b"SeaBIOS"[..]));
        let mut byte = [0xff];
        port.read(0, &mut byte);
        assert_eq!(byte, [0xe9]);
    }

    #[test]
    fn a_guest_that_never_stops_logging_is_not_waited_for() {
        let (_ours, theirs) = CharPort::pair().unwrap();
        let port = DebugCon::new(theirs);
        for _ in 0..100 {
            assert_eq!(port.write(0, &[b'x'; 4096]), None);
        }
    }
}
