//! Traffic that goes on while something else happens.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use postern_lab::{Client, Node, Transfer, Way, network};

use crate::bed::run;

/// One UDP flow: a numbered datagram, its answer, the next.
pub(crate) struct PingPong {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Vec<u64>>,
}

impl PingPong {
    /// Between an answer and the next question.
    const PAUSE: Duration = Duration::from_millis(2);
    /// A datagram without an answer for so long is lost.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// Begins; returns when the first answer is there.
    pub(crate) fn start(node: &Node) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (node, ending, counting) = (node.clone(), stop.clone(), answered.clone());
        let thread = thread::spawn(move || run(&node, || play(&ending, &counting)));
        let playing = Self { stop, answered, thread };
        while playing.answered() == 0 && !playing.thread.is_finished() {
            thread::sleep(Self::PAUSE);
        }
        playing
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until some more answers came.
    pub(crate) fn wait_for_more(&self, within: Duration) {
        let before = self.answered();
        crate::bed::eventually("the UDP flow goes on", within, || self.answered() > before + 5);
    }

    /// Ends; returns the numbers of the datagrams that were lost.
    pub(crate) fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn play(stop: &AtomicBool, answered: &AtomicU64) -> Vec<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(network::echo()).unwrap();
    socket.set_read_timeout(Some(PingPong::PATIENCE)).unwrap();
    let mut lost = Vec::new();
    let mut answer = [0; 2048];
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let sent = socket.send(&number.to_be_bytes());
        let came = loop {
            match socket.recv(&mut answer) {
                // An answer that comes late is not that to this question.
                Ok(length) if answer[length - 8..length] == number.to_be_bytes() => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        if sent.is_ok() && came {
            answered.fetch_add(1, Ordering::Relaxed);
        } else {
            lost.push(number);
        }
        thread::sleep(PingPong::PAUSE);
    }
    lost
}

/// Bulk transfers one after the other until they are told to end.
pub(crate) struct Transfers {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Transfer>>,
}

impl Transfers {
    /// Bytes of each.
    const LENGTH: u64 = 16 << 20;

    /// Begins.
    pub(crate) fn start(node: &Node, way: Way) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (node, ending) = (node.clone(), stop.clone());
        let thread = thread::spawn(move || {
            run(&node, || {
                let mut transfers = Vec::new();
                while !ending.load(Ordering::Relaxed) {
                    let client = Client { deadline: Duration::from_secs(10) };
                    let seed = transfers.len() as u64;
                    transfers.push(client.bulk(network::bulk(), way, seed, Self::LENGTH).unwrap());
                }
                transfers
            })
        });
        Self { stop, thread }
    }

    /// Ends after the one that is under way; every byte of all of them has arrived.
    pub(crate) fn stop(self) -> Vec<Transfer> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
