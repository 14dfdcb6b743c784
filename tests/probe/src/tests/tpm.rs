//! The TPM.

use crate::drivers::tpm::Tpm;
use crate::machine::Machine;
use crate::report::{Failure, Outcome};
use crate::{ensure, text};

const RC_INITIALIZE: u32 = 0x100;
const RC_COMMAND_SIZE: u32 = 0x142;
/// TPM2_Startup(CLEAR).
const STARTUP: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
/// TPM2_GetCapability of one TPM property: the manufacturer.
const MANUFACTURER: &[u8] = &[0x80, 1, 0, 0, 0, 22, 0, 0, 1, 0x7a, 0, 0, 0, 6, 0, 0, 1, 5, 0, 0, 0, 1];
/// TPM2_GetRandom of 16 bytes.
const RANDOM: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];
/// TPM2_PCR_Read of one PCR's SHA-256; the mask of PCRs goes to the end.
const PCR_READ: &[u8] = &[0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, 0, 0x0b, 3];
/// TPM2_PCR_Extend of PCR 16 by an empty password; 32 bytes follow.
const PCR_EXTEND: &[u8] =
    &[0x80, 2, 0, 0, 0, 65, 0, 0, 1, 0x82, 0, 0, 0, 16, 0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x0b];

/// The SHA-256 of one PCR.
fn pcr(tpm: &Tpm, mask: [u8; 3]) -> Outcome<[u8; 32]> {
    let mut command = [0; 20];
    command[..17].copy_from_slice(PCR_READ);
    command[17..].copy_from_slice(&mask);
    let mut response = [0; 62];
    let code = tpm.command(&command, &mut response)?;
    ensure!(code == 0, "reading a PCR: code {code:#x}");
    // Header, update counter, selection, count of digests, size of the first; the digest.
    Ok(core::array::from_fn(|index| response[30 + index]))
}

/// Start-up, manufacturer, random numbers, a PCR that changes when it is extended, and a command of no sane size.
pub fn test(machine: &Machine, index: usize) -> Outcome {
    if index > 0 {
        return Err(Failure::Absent);
    }
    let Some(tpm) = Tpm::take(machine)? else { return Err(Failure::Absent) };
    let code = tpm.command(STARTUP, &mut [])?;
    ensure!(code == 0 || code == RC_INITIALIZE, "starting up: code {code:#x}");
    let by = if code == 0 { "the probe" } else { "firmware" };
    let mut response = [0; 27];
    let code = tpm.command(MANUFACTURER, &mut response)?;
    ensure!(code == 0, "its manufacturer: code {code:#x}");
    let maker = response.get(23..26).and_then(|name| core::str::from_utf8(name).ok()).unwrap_or("?");
    let mut random = [[0u8; 28]; 2];
    for numbers in &mut random {
        let code = tpm.command(RANDOM, numbers)?;
        ensure!(code == 0 && numbers[10..12] == [0, 16], "random numbers: code {code:#x}");
    }
    ensure!(random[0][12..] != random[1][12..] && random[0][12..] != [0; 16], "its random numbers repeat");
    let before = pcr(&tpm, [0, 0, 1])?;
    let mut extend = [0x5a; 65];
    extend[..33].copy_from_slice(PCR_EXTEND);
    let code = tpm.command(&extend, &mut [])?;
    ensure!(code == 0, "extending a PCR: code {code:#x}");
    ensure!(pcr(&tpm, [0, 0, 1])? != before, "an extended PCR stays as it was");
    let code = tpm.command(&[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0x7b], &mut [])?;
    ensure!(code == RC_COMMAND_SIZE, "a command of 4 GiB: code {code:#x}");
    let first = pcr(&tpm, [1, 0, 0])?;
    tpm.give_up()?;
    let first = u32::from_be_bytes([first[0], first[1], first[2], first[3]]);
    Ok(text!("made by {maker}, started by {by}, PCR 0 {first:08x}…"))
}
