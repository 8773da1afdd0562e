use std::net::SocketAddrV4;

use super::*;
use crate::test_bed::{CLIENT, CONSUMER, PROVIDER, SERVICE, TARGET, addresses, checked, datagram};

fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("postern-replay-{name}-{}.pcap", std::process::id()))
}

fn frames(path: &std::path::Path) -> Vec<CapturedFrame> {
    let mut reader = CaptureReader::open(path).unwrap();
    std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
}

#[test]
fn a_capture_is_translated_offline_and_twice_the_same_with_the_times_of_its_frames() {
    let (input, outputs) = (file("in"), [file("out-1"), file("out-2")]);
    let mut writer = CaptureWriter::create(&input).unwrap();
    let client = SocketAddrV4::new(CLIENT, 5000);
    let time = |milliseconds| Duration::from_secs(1_700_000_000) + Duration::from_millis(milliseconds);
    let mut question = datagram(CONSUMER, client, SERVICE, b"question");
    // The capture was made at another gateway.
    question[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    writer.write(time(0), &question).unwrap();
    writer.write(time(5), &question[..20]).unwrap();
    writer.write(time(200_000), &question).unwrap();
    writer.finish().unwrap();
    for output in &outputs {
        let job = Replay { input: input.clone(), output: output.clone(), port: None };
        let report = replay(&checked(), &job).unwrap();
        assert_eq!((report.total.frames.received, report.total.frames.forwarded, report.total.imbalance), (3, 2, 0));
        assert_eq!(report.total.drops["truncated"], 1);
        // After 200 seconds the first flow has expired (UDP: 120).
        assert_eq!((report.total.frames.flows_new, report.total.frames.flows), (2, 1));
    }
    let out = frames(&outputs[0]);
    assert_eq!(out.iter().map(|frame| frame.time).collect::<Vec<_>>(), [time(0), time(200_000)]);
    let (snat, target) = addresses(&out[0].bytes);
    assert_eq!((*snat.ip(), target), (Ipv4Addr::new(10, 0, 0, 200), TARGET));
    assert_eq!(out[0].bytes[..6], made_up(PROVIDER as u16, (*TARGET.ip()).into()).0);
    assert_eq!(std::fs::read(&outputs[0]).unwrap(), std::fs::read(&outputs[1]).unwrap());
    for path in [&input, &outputs[0], &outputs[1]] {
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_port_that_is_not_configured_is_refused_with_those_that_are() {
    let job = Replay { input: file("none"), output: file("nothing"), port: Some("eth9".to_owned()) };
    let error = replay(&checked(), &job).unwrap_err();
    assert_eq!(error.to_string(), "there is no port \"eth9\" in the configuration; it has consumer0, provider0");
}
