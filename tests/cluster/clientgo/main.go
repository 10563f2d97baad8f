// clientgo is a plain client-go leader elector, to run beside ours on one Lease.
// It prints one JSON line per event: leading, stopped, new-leader.
// client-go says stopped also to an elector that ends without having led.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

type event struct {
	Event    string `json:"event"`
	Identity string `json:"identity"`
	Time     string `json:"time"`
}

var printing sync.Mutex

func print(name, identity string) {
	printing.Lock()
	defer printing.Unlock()
	line, _ := json.Marshal(event{name, identity, time.Now().UTC().Format(time.RFC3339Nano)})
	fmt.Println(string(line))
}

func main() {
	kubeconfig := flag.String("kubeconfig", os.Getenv("KUBECONFIG"), "kubeconfig file; empty means in-cluster")
	namespace := flag.String("namespace", "default", "namespace of the Lease")
	lease := flag.String("lease", "", "name of the Lease")
	identity := flag.String("identity", "", "holder identity")
	duration := flag.Duration("lease-duration", 15*time.Second, "lease duration")
	deadline := flag.Duration("renew-deadline", 10*time.Second, "renew deadline")
	period := flag.Duration("retry-period", 2*time.Second, "retry period")
	release := flag.Bool("release-on-cancel", false, "release the Lease on SIGTERM and SIGINT")
	flag.Parse()
	if *lease == "" || *identity == "" {
		fmt.Fprintln(os.Stderr, "-lease and -identity are needed")
		os.Exit(2)
	}
	if err := run(*kubeconfig, *namespace, *lease, *identity, *duration, *deadline, *period, *release); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kubeconfig, namespace, lease, identity string, duration, deadline, period time.Duration, release bool) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: namespace, Name: lease},
			Client:     client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: identity},
		},
		LeaseDuration:   duration,
		RenewDeadline:   deadline,
		RetryPeriod:     period,
		ReleaseOnCancel: release,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { print("leading", identity) },
			OnStoppedLeading: func() { print("stopped", identity) },
			OnNewLeader:      func(leader string) { print("new-leader", leader) },
		},
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Run returns when leadership is lost; a standby again is what a long-lived process wants.
	for ctx.Err() == nil {
		elector.Run(ctx)
	}
	return nil
}
