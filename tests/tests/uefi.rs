//! UEFI on our machine, as the distribution ships it: OVMF's own shell, and systems that start through it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orangery_tests::checks;
use orangery_tests::guest::Guest;
use orangery_tests::machine::Machine;
use orangery_tests::media::{self, Flavour};
use orangery_tests::nested::Host;
use orangery_tests::screen::Image;

/// Runs a test on the shared host, made ready for firmware.
fn on_host(mut test: impl FnMut(&Host) -> Result<()>) -> Result<()> {
    Host::with_shared(|host| {
        host.prepare_for_uefi()?;
        test(host)
    })
}

/// How long Debian may take from its CD to the end: some forty seconds on an emulated host, where it is tried again.
const DEBIAN_LIFE: Duration = Duration::from_secs(150);
/// What the shell runs when it starts: it shows a variable of a vendor of its own, and sets it.
const STARTUP: &str = "\
setvar Juice -guid 6f72616e-6765-7279-8000-000000000001\r
setvar Juice -guid 6f72616e-6765-7279-8000-000000000001 -nv -bs =0xc0ffee42\r
echo all set\r
";
/// What it says of the variable when there is none, and when it is there.
const MISSING: &str = "Unable to get";
const THERE: &str = "42 EE FF C0";

#[test]
fn a_variable_outlasts_the_machine_that_set_it_until_the_variables_are_reset() -> Result<()> {
    on_host(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let disk = folder.path().join("startup.img");
        media::fat_disk(&disk, &[("startup.nsh", STARTUP)])?;
        let flags = format!("--firmware uefi --memory 256 --cpus 2 --net none --disk '{}',ro", disk.display());
        let mut machine = Machine::start(host, "shell", &flags)?;
        let text = machine.wait_for_serial("\nall set\r")?;
        assert!(text.contains("UEFI Interactive Shell") && text.contains(MISSING) && !text.contains(THERE), "{text}");
        // The firmware's picture, in the size that the monitor asks for: text on black.
        let shot = machine.verb("screenshot", "shell.png")?.success()?;
        let picture = Image::read(&shot.folder.join("shell.png"))?;
        assert_eq!((picture.width, picture.height), (1280, 800));
        assert!(picture.colours(0..1280, 0..800) > 2, "see {}", shot.folder.display());
        machine.verb("stop", "--force")?.success()?;
        machine.wait()?;

        let mut machine = Machine::restart(host, "shell")?;
        let text = machine.wait_for_serial("\nall set\r")?;
        assert!(text.contains(THERE) && !text.contains(MISSING), "{text}");
        // The guest's own reset comes back to the shell, its variables as they were.
        machine.verb("send-keys", "'reset -w' enter")?.success()?;
        let text = machine.wait_for_serial_times("\nall set\r", 2)?;
        assert!(text.matches(THERE).count() == 2 && !text.contains(MISSING), "{text}");
        assert!(machine.verb("nvram-reset", "")?.code != 0, "the variables of a running machine were reset");
        machine.verb("send-keys", "'reset -s' enter")?.success()?;
        machine.wait()?.success()?;

        let output = Machine::verb_of(host, "nvram-reset", "shell", "")?.success()?;
        assert!(output.stdout.contains("reset"), "{}", output.stdout);
        let mut machine = Machine::restart(host, "shell")?;
        let text = machine.wait_for_serial("\nall set\r")?;
        assert!(text.contains(MISSING) && !text.contains(THERE), "{text}");
        machine.verb("stop", "--force")?.success()?;
        Ok(())
    })
}

/// Debian's signed boot loaders, its kernel and a script on a CD.
fn debian_disc(folder: &Path) -> Result<PathBuf> {
    let script = include_str!("uefi/guest.sh");
    let guest = Guest::build(Flavour::Generic, folder, script, &[])?;
    let (info, config) = (folder.join("info"), folder.join("grub.cfg"));
    fs::write(&info, "A test\n").context("could not write a disc's file")?;
    fs::write(&config, include_str!("uefi/grub.cfg")).context("could not write a disc's file")?;
    let (shim, grub) = (media::shim()?, media::grub_cd()?);
    let programs = [("BOOTX64.EFI", shim.as_path()), ("grubx64.efi", grub.as_path())];
    let files = [
        (".disk/info", info.as_path()),
        ("boot/grub/grub.cfg", config.as_path()),
        ("vmlinuz", guest.kernel.as_path()),
        ("initrd", guest.initrd.as_path()),
    ];
    media::uefi_disc(folder, &programs, &files)
}

/// Starts Debian from its CD with this firmware, and expects these lines from it.
fn debian_says(firmware: &str, expected: &[&str]) -> Result<()> {
    on_host(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let disc = debian_disc(folder.path())?;
        let flags = format!("--firmware {firmware} --memory 768 --cpus 2 --net none --cdrom '{}'", disc.display());
        let mut machine = Machine::start_for(host, firmware, &flags, DEBIAN_LIFE)?;
        let text = machine.wait_for_serial("ok done")?;
        checks::expect(&text, expected)?;
        machine.wait()?.success()?;
        Ok(())
    })
}

#[test]
fn debian_starts_from_a_cd_and_powers_off() -> Result<()> {
    debian_says("uefi", &["efi", "flash", "ecam", "console efi", "gpu", "done"])
}

#[test]
fn debian_s_signed_system_starts_under_secure_boot() -> Result<()> {
    debian_says("uefi-secure", &["efi", "secure-boot", "flash", "ecam", "console efi", "gpu", "done"])
}

/// Makes a folder that offers only this of Debian's firmware with system management mode; how to name it to a machine.
fn guarded_firmware(folder: &Path, descriptor: &str) -> Result<String> {
    let path = Path::new("/usr/share/qemu/firmware").join(descriptor);
    fs::copy(&path, folder.join(descriptor)).with_context(|| format!("could not copy {}", path.display()))?;
    Ok(format!("ORANGERY_FIRMWARE='{}'", folder.display()))
}

#[test]
fn debian_s_signed_system_starts_where_firmware_needs_system_management_mode() -> Result<()> {
    on_host(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let disc = debian_disc(folder.path())?;
        let firmware = guarded_firmware(folder.path(), "40-edk2-x86_64-secure-enrolled.json")?;
        let flags = format!("--firmware uefi-secure --memory 768 --cpus 2 --net none --cdrom '{}'", disc.display());
        Machine::create(host, "guarded", &flags)?;
        let mut machine = Machine::start_with(host, "guarded", DEBIAN_LIFE, &firmware)?;
        let text = machine.wait_for_serial("ok done")?;
        // The kernel has no business with the flash.
        checks::expect(&text, &["efi", "secure-boot", "ecam", "console efi", "gpu", "done"])?;
        machine.wait()?.success()?;
        Ok(())
    })
}

/// What the shell runs as one who would like to know what firmware hides, and to change its variables behind its back: it writes
/// into the last MiB of RAM and reads that, erases the first block of the variables' flash, and reads the volume's signature there.
const INTRUDER: &str = "\
mm 2ff00000 12345678 -w 4 -MEM -n\r
mm 2ff00000 -w 4 -MEM -n\r
mm ffc00000 20 -w 1 -MMIO -n\r
mm ffc00000 d0 -w 1 -MMIO -n\r
mm ffc00028 -w 4 -MMIO -n\r
setvar Juice -guid 6f72616e-6765-7279-8000-000000000001 -nv -bs =0xc0ffee42\r
setvar Juice -guid 6f72616e-6765-7279-8000-000000000001\r
echo all tried\r
";

#[test]
fn nobody_but_firmware_sees_its_memory_or_writes_its_variables() -> Result<()> {
    on_host(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let disk = folder.path().join("startup.img");
        media::fat_disk(&disk, &[("startup.nsh", INTRUDER)])?;
        let firmware = guarded_firmware(folder.path(), "50-edk2-x86_64-secure.json")?;
        let flags = format!("--firmware uefi --memory 768 --cpus 2 --net none --disk '{}',ro", disk.display());
        Machine::create(host, "intruder", &flags)?;
        let mut machine = Machine::start_with(host, "intruder", DEBIAN_LIFE, &firmware)?;
        let text = machine.wait_for_serial("\nall tried\r")?;
        let read = |command: &str| text.split_once(command).and_then(|(_, rest)| rest.split_ascii_whitespace().next());
        ensure!(read("mm 2ff00000 -w 4 -MEM -n") == Some("0xFFFFFFFF"), "what firmware hides is seen: {text}");
        ensure!(read("mm ffc00028 -w 4 -MMIO -n") == Some("0x4856465F"), "the variables were erased: {text}");
        ensure!(text.contains(THERE), "what is asked of firmware is not done: {text}");
        // It is hidden from the first moment on when the machine goes on after it was saved.
        machine.verb("suspend", "")?.success()?;
        let mut machine = Machine::start_with(host, "intruder", DEBIAN_LIFE, &firmware)?;
        machine.verb("send-keys", "'mm 2ff00000 -w 4 -MEM -n' enter")?.success()?;
        machine.wait_for_serial("0xFFFFFFFF")?;
        machine.verb("stop", "--force")?.success()?;
        Ok(())
    })
}

#[test]
fn a_program_that_nobody_signed_is_refused_under_secure_boot() -> Result<()> {
    on_host(|host| {
        let folder = tempfile::tempdir_in(orangery_tests::artifacts()?)?;
        let program = media::memtest_efi()?;
        let disc = media::uefi_disc(folder.path(), &[("BOOTX64.EFI", program.as_path())], &[])?;
        let flags = format!("--firmware uefi-secure --memory 256 --cpus 1 --net none --cdrom '{}'", disc.display());
        let mut machine = Machine::start(host, "unsigned", &flags)?;
        let text = machine.wait_for_serial("Access Denied")?;
        assert!(text.contains("BdsDxe: failed to load"), "{text}");
        machine.verb("stop", "--force")?.success()?;
        Ok(())
    })
}
