//! Namespaces, veth, clients and servers over netlink, for the tests and for postern lab.
