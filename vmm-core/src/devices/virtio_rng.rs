//! virtio entropy device (virtio 1.2 §5.4): fills every buffer the driver offers with random bytes.

use std::sync::Arc;

use crate::base::StateError;
use crate::virtio::{ConfigBytes, ConfigSpace, Device, Fault, Info, Io, Role, id};

/// The most random bytes for one request: a driver that asks for more gets less, as the specification allows.
const MAX_REQUEST: usize = 64 * 1024;

/// The device; it has no state.
#[derive(Default)]
pub struct Rng {
    config: Arc<ConfigBytes>,
}

impl Device for Rng {
    const INFO: Info = Info::new(id::ENTROPY, "rng", Role::Io);
    type State = ();

    fn queues(&self) -> &[u16] {
        &[256]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn on_queue(&mut self, queue: usize, io: &mut Io<'_>) -> Result<(), Fault> {
        let mut bytes = Vec::new();
        while let Some(chain) = io.pop(queue)? {
            let mut writer = chain.writer();
            bytes.resize(writer.remaining().min(MAX_REQUEST), 0);
            if let Err(error) = fill_random(&mut bytes) {
                io.problem(format!("the host gave no random bytes: {error}"));
                continue;
            }
            writer.write_all(&bytes)?;
            let written = writer.written();
            chain.complete(written);
        }
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&self) {}

    fn restore(&mut self, (): ()) -> Result<(), StateError> {
        Ok(())
    }
}

/// Fills `bytes` from the host kernel's generator.
fn fill_random(mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: the kernel writes at most bytes.len() bytes into the slice, which is ours alone.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match usize::try_from(count) {
            Ok(count) => bytes = &mut bytes[count..],
            Err(_) => {
                let error = std::io::Error::last_os_error();
                if error.kind() != std::io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::Guest;

    crate::virtio_conformance!(conformance, Rng::default);

    #[test]
    fn every_buffer_is_filled_with_other_bytes() {
        let mut guest = Guest::new(Rng::default());
        guest.start();
        let first = guest.request(0, &[], &[32, 32]).unwrap();
        let second = guest.request(0, &[], &[64]).unwrap();
        assert_eq!((first.len(), second.len()), (64, 64));
        assert_ne!(first[..32], first[32..]);
        assert_ne!(first, second);
    }

    #[test]
    fn a_huge_request_is_answered_in_part_and_an_empty_one_at_once() {
        let mut guest = Guest::new(Rng::default());
        guest.start();
        assert_eq!(guest.request(0, &[], &[MAX_REQUEST as u32 + 100]).unwrap().len(), MAX_REQUEST);
        assert_eq!(guest.request(0, &[b"no room"], &[]).unwrap().len(), 0);
    }
}
