// The job of a composed kind, as people write it with controller-runtime: one process, one lock, a controller for each
// kind. An object gets a ConfigMap of its name with its value, and a status that says so.
package main

import (
	"context"
	"flag"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const managedBy = "app.kubernetes.io/managed-by"

type reconciler struct {
	client.Client
	kind schema.GroupVersionKind
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	parent := &unstructured.Unstructured{}
	parent.SetGroupVersionKind(r.kind)
	if err := r.Get(ctx, request.NamespacedName, parent); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if parent.GetDeletionTimestamp() != nil {
		return ctrl.Result{}, nil
	}
	value, _, _ := unstructured.NestedString(parent.Object, "spec", "value")
	child := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: request.Name, Namespace: request.Namespace}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, child, func() error {
		if child.Labels == nil {
			child.Labels = map[string]string{}
		}
		child.Labels[managedBy] = "peer"
		child.Data = map[string]string{"value": value}
		return controllerutil.SetControllerReference(parent, child, r.Scheme())
	})
	if err != nil {
		return ctrl.Result{}, err
	}
	status := map[string]any{"observedGeneration": parent.GetGeneration(), "value": value, "ready": true}
	current, _, _ := unstructured.NestedMap(parent.Object, "status")
	if current["observedGeneration"] == status["observedGeneration"] && current["value"] == value && current["ready"] == true {
		return ctrl.Result{}, nil
	}
	parent.Object["status"] = status
	if err := r.Status().Update(ctx, parent); err != nil && !apierrors.IsConflict(err) {
		return ctrl.Result{}, err
	} else if err != nil {
		return ctrl.Result{Requeue: true}, nil
	}
	return ctrl.Result{}, nil
}

func main() {
	group := flag.String("group", "", "API group of the kinds")
	kinds := flag.String("kinds", "", "comma-separated kinds")
	namespace := flag.String("namespace", "", "namespace of the objects and of the lock")
	flag.Parse()
	ctrl.SetLogger(zap.New())
	scheme := runtime.NewScheme()
	check(clientgoscheme.AddToScheme(scheme))
	config := ctrl.GetConfigOrDie()
	// What an object waits for shall be the API server, and not the client's own limit.
	config.QPS = -1
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                        scheme,
		Metrics:                       metricsserver.Options{BindAddress: "0"},
		LeaderElection:                true,
		LeaderElectionID:              "peer",
		LeaderElectionNamespace:       *namespace,
		LeaderElectionReleaseOnCancel: true,
		Cache:                         cache.Options{DefaultNamespaces: map[string]cache.Config{*namespace: {}}},
		Client:                        client.Options{Cache: &client.CacheOptions{Unstructured: true}},
	})
	check(err)
	for _, kind := range strings.Split(*kinds, ",") {
		gvk := schema.GroupVersionKind{Group: *group, Version: "v1", Kind: kind}
		object := &unstructured.Unstructured{}
		object.SetGroupVersionKind(gvk)
		check(ctrl.NewControllerManagedBy(manager).
			Named(strings.ToLower(kind)).
			For(object).
			Owns(&corev1.ConfigMap{}).
			WithOptions(controller.Options{MaxConcurrentReconciles: 4}).
			Complete(&reconciler{Client: manager.GetClient(), kind: gvk}))
	}
	check(manager.Start(ctrl.SetupSignalHandler()))
}

func check(err error) {
	if err != nil {
		ctrl.Log.Error(err, "ends")
		os.Exit(1)
	}
}
