//! The tools against QEMU's.

use std::fs;
use std::process::Command;

use super::*;
use crate::backend::disk::open::Format;
use crate::backend::disk::qcow2::{CreateOptions, check, create, create_overlay};
use std::path::Path;

fn folder() -> tempfile::TempDir {
    let built = std::env::current_exe().unwrap();
    tempfile::tempdir_in(built.parent().unwrap()).unwrap()
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).output().expect("qemu-img is needed: './dev setup test'");
    let words = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {args:?}: {words}");
    words
}

fn quietly<T>(run: impl FnOnce(&mut Job<'_>) -> T) -> T {
    run(&mut Job { progress: &mut |_, _| {}, cancel: &AtomicBool::new(false) })
}

fn data() -> Vec<u8> {
    let mut bytes = vec![0; 6 << 20];
    for (at, byte) in bytes.iter_mut().enumerate().filter(|(at, _)| (at >> 17) % 3 == 1) {
        *byte = (at * 7 + (at >> 9)) as u8 | 1;
    }
    bytes
}

#[test]
fn a_copy_in_any_format_holds_the_same_as_qemu_says() {
    let folder = folder();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, data()).unwrap();
    let raw_name = raw.to_str().unwrap();
    let sources = [
        ("raw", "", "a.img"),
        ("qcow2", "-c", "b.qcow2"),
        ("vmdk", "subformat=streamOptimized", "c.vmdk"),
        ("vdi", "", "d.vdi"),
        ("vpc", "subformat=dynamic,force_size=on", "e.vhd"),
        ("vhdx", "", "f.vhdx"),
    ];
    for (format, option, name) in sources {
        let from = folder.path().join(name);
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        match option {
            "" => {}
            "-c" => args.push("-c"),
            option => args.extend(["-o", option]),
        }
        let from_name = from.to_str().unwrap().to_owned();
        args.extend([raw_name, &from_name]);
        qemu_img(&args);
        for (target, ending) in [(Format::Qcow2, "qcow2"), (Format::Raw, "raw")] {
            let to = folder.path().join(format!("{name}.copy.{ending}"));
            let mut last = (0, 1);
            let target = Target { format: target, cluster: None };
            let job = &mut Job { progress: &mut |d, a| last = (d, a), cancel: &AtomicBool::new(false) };
            convert(&from, &to, target, job).unwrap();
            assert_eq!(last.0, last.1);
            qemu_img(&["compare", "-f", "raw", "-F", ending, raw_name, to.to_str().unwrap()]);
            if ending == "qcow2" {
                qemu_img(&["check", to.to_str().unwrap()]);
            }
            // Holes stay holes.
            use std::os::unix::fs::MetadataExt;
            assert!(fs::metadata(&to).unwrap().blocks() * 512 < 3 << 20, "{name}");
            assert!(matches!(quietly(|job| convert(&from, &to, target, job)), Err(ToolError::Refused(_))));
        }
    }
    let left =
        fs::read_dir(folder.path()).unwrap().filter(|e| e.as_ref().unwrap().path().to_string_lossy().contains(".part"));
    assert_eq!(left.count(), 0);
}

#[test]
fn a_cancelled_copy_leaves_nothing() {
    let folder = folder();
    let (raw, to) = (folder.path().join("disk.raw"), folder.path().join("to.qcow2"));
    fs::write(&raw, data()).unwrap();
    let cancel = AtomicBool::new(false);
    let mut progress = |done, _| cancel.store(done > 1 << 20, Ordering::Relaxed);
    let target = Target { format: Format::Qcow2, cluster: None };
    let result = convert(&raw, &to, target, &mut Job { progress: &mut progress, cancel: &cancel });
    assert!(matches!(result, Err(ToolError::Cancelled)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let folder = folder();
    let (raw, thin) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    fs::write(&raw, data()).unwrap();
    create(&thin, CreateOptions::thin(6 << 20)).unwrap();
    for path in [&raw, &thin] {
        grow(path, 9 << 30).unwrap();
        let error = grow(path, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("never made smaller"), "{error}");
        assert_eq!(info(path).unwrap().layers[0].virtual_size, 9 << 30);
    }
    assert!(qemu_img(&["info", thin.to_str().unwrap()]).contains("virtual size: 9 GiB"));
    qemu_img(&["check", thin.to_str().unwrap()]);
}

#[test]
fn compacting_gives_zeroes_and_free_space_back() {
    let folder = folder();
    let (raw, thin) = (folder.path().join("disk.raw"), folder.path().join("disk.qcow2"));
    fs::write(&raw, data()).unwrap();
    // Every cluster has a place, zeroes too; QEMU frees some without a hole.
    qemu_img(&["convert", "-S", "0", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap(), thin.to_str().unwrap()]);
    for path in [&raw, &thin] {
        let (before, after) = quietly(|job| compact(path, job)).unwrap();
        assert!(before >= 6 << 20 && after < 3 << 20, "{before} {after}");
    }
    assert!(fs::read(&raw).unwrap() == data());
    qemu_img(&["compare", raw.to_str().unwrap(), thin.to_str().unwrap()]);
    let findings = check(&thin, &mut |_, _| true).unwrap();
    assert_eq!((findings.errors, findings.leaked), (0, 0));
}

#[test]
fn a_chain_is_shown_with_what_is_shared_and_what_is_wrong() {
    let folder = folder();
    let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
    create(&base, CreateOptions::thin(4 << 20)).unwrap();
    create_overlay(&top, Path::new("base.qcow2"), Format::Qcow2, CreateOptions::overlay(4 << 20)).unwrap();
    let found = info(&top).unwrap();
    assert_eq!(found.layers.len(), 2);
    assert_eq!((found.layers[0].cluster, found.layers[1].cluster), (Some(4096), Some(65536)));
    assert!(found.shared_size > 0 && found.problems.is_empty());
    fs::remove_file(&base).unwrap();
    let found = info(&top).unwrap();
    assert_eq!(found.layers.len(), 1);
    assert!(found.problems[0].contains("base.qcow2"), "{:?}", found.problems);
}

#[test]
fn two_images_are_the_same_where_their_disks_are_and_one_byte_makes_them_different() {
    let folder = folder();
    let [raw, thin, packed] = ["a.raw", "b.qcow2", "c.qcow2"].map(|name| folder.path().join(name));
    fs::write(&raw, data()).unwrap();
    let target = Target { format: Format::Qcow2, cluster: None };
    quietly(|job| convert(&raw, &thin, target, job)).unwrap();
    qemu_img(&["convert", "-c", "-O", "qcow2", thin.to_str().unwrap(), packed.to_str().unwrap()]);
    for other in [&thin, &packed] {
        assert!(quietly(|job| is_same(&raw, other, job)).unwrap());
    }
    let mut bytes = data();
    // Where the other has a hole, and the last byte.
    for at in [5, bytes.len() - 1] {
        let before = bytes[at];
        bytes[at] ^= 1;
        fs::write(&raw, &bytes).unwrap();
        assert!(!quietly(|job| is_same(&raw, &thin, job)).unwrap(), "{at}");
        bytes[at] = before;
    }
    bytes.extend([0; 512]);
    fs::write(&raw, &bytes).unwrap();
    assert!(!quietly(|job| is_same(&raw, &thin, job)).unwrap());
    let given_up = is_same(&thin, &packed, &mut Job { progress: &mut |_, _| {}, cancel: &AtomicBool::new(true) });
    assert!(matches!(given_up, Err(ToolError::Cancelled)));
}

#[test]
fn a_check_tells_how_far_it_is_and_can_be_given_up() {
    let folder = folder();
    let [raw, image] = ["a.raw", "b.qcow2"].map(|name| folder.path().join(name));
    fs::write(&raw, data()).unwrap();
    assert_eq!(quietly(|job| super::check(&raw, true, job)).unwrap(), Default::default());
    create(&image, CreateOptions { cluster: 512, ..CreateOptions::thin(6 << 20) }).unwrap();
    for repair in [false, true] {
        let mut told = Vec::new();
        let job = &mut Job { progress: &mut |done, all| told.push((done, all)), cancel: &AtomicBool::new(false) };
        assert_eq!(super::check(&image, repair, job).unwrap().errors, 0);
        assert!(told.len() > 1 && told.iter().all(|(done, all)| done < all), "{told:?}");
        let given_up = &mut Job { progress: &mut |_, _| {}, cancel: &AtomicBool::new(true) };
        assert!(matches!(super::check(&image, repair, given_up), Err(ToolError::Cancelled)));
    }
}
